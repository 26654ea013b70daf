//! Where compiled kernels and the tuner's choices stay, for all processes of a node.
//!
//! The first process on a kind of card compiles and measures for minutes; whoever comes after it, at the same time or a
//! week later, reads what it found. The backend keeps both in one database (cubecl-environment, `src/persistence`): several
//! processes may have it open, a writer that finds it locked waits a few seconds, and what can't be written or read is
//! compiled and measured again. That its file is on a disk of this node, and not on a network's, is the user's part: the
//! processes share memory beside it.

use std::ffi::OsString;
use std::path::PathBuf;

/// Names the folder.
pub const VARIABLE: &str = "RETOUCH_CACHE";

/// The folder: `$RETOUCH_CACHE`, else `retouch` in the user's cache folder, else in that for temporary files.
pub fn folder() -> PathBuf {
    folder_of(|name| std::env::var_os(name))
}

fn folder_of(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let set = |name| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let user = || set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let own = || user().unwrap_or_else(std::env::temp_dir).join("retouch");
    set(VARIABLE).unwrap_or_else(own)
}

/// Has the backend keep its kernels there, unless it was used before, apart from those of other kinds of cards: what the
/// tuner chose it knows by a card's number alone.
#[cfg(feature = "cube")]
pub(super) fn set_up(kind: &str) {
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig};

    let mut config = CubeClRuntimeConfig::default();
    config.environment.name = kind.to_owned();
    config.environment.path = CacheConfig::Directory(folder().join("kernels"));
    config.compilation.cache = true;
    // The second device of a process finds the settings of the first.
    CubeClRuntimeConfig::try_set(config.override_from_env());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_setting_names_the_folder() {
        let folder = |set: &[(&str, &str)]| {
            let set: Vec<_> = set
                .iter()
                .map(|(k, v)| (k.to_string(), OsString::from(v)))
                .collect();
            folder_of(|name| {
                set.iter()
                    .find(|(key, _)| key == name)
                    .map(|(_, value)| value.clone())
            })
        };
        let (own, xdg, home) = (
            (VARIABLE, "/fast"),
            ("XDG_CACHE_HOME", "/xdg"),
            ("HOME", "/home/a"),
        );
        assert_eq!(folder(&[own, xdg, home]), PathBuf::from("/fast"));
        assert_eq!(
            folder(&[(VARIABLE, ""), xdg, home]),
            PathBuf::from("/xdg/retouch")
        );
        assert_eq!(folder(&[home]), PathBuf::from("/home/a/.cache/retouch"));
        assert_eq!(folder(&[]), std::env::temp_dir().join("retouch"));
    }
}
