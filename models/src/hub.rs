//! Models by their ids on the Hugging Face Hub, in the cache on this machine that `hf download` fills.
//!
//! Whatever loads or checks a model's folder takes an id such as `Qwen/Qwen2.5-VL-7B-Instruct` instead, so that a run
//! file may name one and every node finds its own copy. Nothing is ever downloaded from here.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::weights::LoadError;

/// Repositories that base models and judges are published in, as far as more is to be said than their ids.
const PUBLISHED: [Published; 5] = [
    Published {
        id: "black-forest-labs/FLUX.1-Kontext-dev",
        // The transformer a second time, 24 GB, in another layout.
        exclude: Some("flux1-kontext-dev.safetensors"),
        is_gated: true,
    },
    Published::plain("Qwen/Qwen-Image-Edit-2509"),
    Published::plain("Qwen/Qwen2.5-VL-3B-Instruct"),
    Published::plain("Qwen/Qwen2.5-VL-7B-Instruct"),
    Published::plain("Qwen/Qwen2.5-VL-32B-Instruct"),
];

struct Published {
    id: &'static str,
    /// What of the repository is not needed and large.
    exclude: Option<&'static str>,
    /// Whether its terms have to be accepted first.
    is_gated: bool,
}

impl Published {
    const fn plain(id: &'static str) -> Self {
        Self {
            id,
            exclude: None,
            is_gated: false,
        }
    }
}

/// The folder of the model that `path` names: a folder itself, a repository's folder in a Hub cache
/// (`models--ORG--NAME`), or an id `ORG/NAME` in this machine's. A folder wins over an id.
///
/// A path that may be neither comes back as it is, so that whoever reads it says what is missing there.
///
/// # Errors
/// If it is a file, an id that the cache has not, or a repository without a snapshot to choose.
pub fn locate(path: &Path) -> Result<PathBuf, LoadError> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    locate_in(
        path,
        cache(|name| variable(name).map(PathBuf::from)).as_deref(),
    )
}

/// Whether `path` is a model's id and no folder.
pub fn is_id(path: &Path) -> bool {
    Id::of(path).is_some() && !path.exists()
}

/// Where the Hub's client keeps repositories, by the variables that it reads.
fn cache(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let below = |name: &str, rest: &str| variable(name).map(|folder| folder.join(rest));
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| below("HF_HOME", "hub"))
        .or_else(|| below("XDG_CACHE_HOME", "huggingface/hub"))
        .or_else(|| below("HOME", ".cache/huggingface/hub"))
}

fn locate_in(path: &Path, cache: Option<&Path>) -> Result<PathBuf, LoadError> {
    if path.is_file() {
        return Err(LoadError::format(path, a_file(path)));
    }
    if path.is_dir() {
        return match is_repository(path) {
            true => snapshot(path),
            false => Ok(path.to_owned()),
        };
    }
    let Some(id) = Id::of(path) else {
        return Ok(path.to_owned());
    };
    let repository = cache.map(|cache| cache.join(id.folder()));
    match repository.filter(|repository| repository.is_dir()) {
        Some(repository) => snapshot(&repository),
        None => absent(path, id, cache),
    }
}

/// Whether the folder is a repository's in a Hub cache, which has its files in `snapshots/HASH/`.
fn is_repository(folder: &Path) -> bool {
    let is_model = ["model_index.json", "config.json"]
        .iter()
        .any(|file| folder.join(file).exists());
    !is_model && folder.join("snapshots").is_dir()
}

/// The snapshot of a repository that `main` points to, or the only one.
fn snapshot(repository: &Path) -> Result<PathBuf, LoadError> {
    let snapshots = repository.join("snapshots");
    let main = std::fs::read_to_string(repository.join("refs/main"));
    let main = main.map(|hash| snapshots.join(hash.trim()));
    if let Some(main) = main.ok().filter(|main| *main != snapshots && main.is_dir()) {
        return Ok(main);
    }
    let entries = std::fs::read_dir(&snapshots)
        .into_iter()
        .flatten()
        .flatten();
    let folders = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir());
    let mut found: Vec<PathBuf> = folders.collect();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(LoadError::format(
            repository,
            "the Hub cache has no snapshot of this model: its download did not begin or was deleted",
        )),
        count => Err(LoadError::format(
            repository,
            format!("{count} snapshots and no refs/main that says which: name one of snapshots/"),
        )),
    }
}

/// A model's id on the Hub.
#[derive(Clone, Copy)]
struct Id<'a> {
    organisation: &'a str,
    name: &'a str,
}

impl<'a> Id<'a> {
    /// `path` as an id, if it can be one.
    fn of(path: &'a Path) -> Option<Self> {
        let text = path.to_str()?.trim_end_matches('/');
        let (organisation, name) = text.split_once('/')?;
        let is_name = |text: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !text.is_empty() && !text.starts_with(['.', '-']) && text.chars().all(known)
        };
        (is_name(organisation) && is_name(name)).then_some(Self { organisation, name })
    }

    /// Its folder in a cache.
    fn folder(self) -> String {
        format!("models--{}--{}", self.organisation, self.name)
    }
}

impl fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.organisation, self.name)
    }
}

/// What is said of an id, or of a path like one, that is nowhere here.
fn absent(path: &Path, id: Id<'_>, cache: Option<&Path>) -> Result<PathBuf, LoadError> {
    let text = id.to_string();
    if let Some(published) = PUBLISHED.iter().find(|published| published.id == text) {
        let place = place(cache);
        let reason = format!(
            "neither a folder here nor in {place}; {}",
            download(published, None)
        );
        return Err(LoadError::format(path, reason));
    }
    // A folder that was meant for a known model, such as models/FLUX.1-Kontext-dev.
    let names = PUBLISHED
        .iter()
        .find(|published| published.id.ends_with(&format!("/{}", id.name)));
    if let Some(published) = names {
        let reason = format!(
            "there is no such folder; {}",
            download(published, Some(path))
        );
        return Err(LoadError::format(path, reason));
    }
    // In a folder that is there, a path was meant.
    if Path::new(id.organisation).is_dir() {
        return Ok(path.to_owned());
    }
    let reason = format!(
        "neither a folder here nor in {}; if it is a model's id on the Hub, download it with `hf download {id}`",
        place(cache)
    );
    Err(LoadError::format(path, reason))
}

fn place(cache: Option<&Path>) -> String {
    cache.map_or("a Hub cache".to_owned(), |cache| {
        format!("the Hub cache {}", cache.display())
    })
}

/// How to get a model, into a cache or a folder.
fn download(published: &Published, folder: Option<&Path>) -> String {
    let Published {
        id,
        exclude,
        is_gated,
    } = published;
    let exclude = exclude.map_or(String::new(), |file| format!(" --exclude {file}"));
    let folder = folder.map_or(String::new(), |folder| {
        format!(" --local-dir {}", folder.display())
    });
    let terms = match is_gated {
        true => format!(
            ", after its terms are accepted at https://huggingface.co/{id} and with `hf auth login`"
        ),
        false => String::new(),
    };
    format!("download it with `hf download {id}{exclude}{folder}`{terms}")
}

/// What is said of a file where a folder should be.
fn a_file(path: &Path) -> &'static str {
    let end = path.extension().and_then(|end| end.to_str()).unwrap_or("");
    match end {
        "gguf" => {
            "a GGUF file, whose weights are quantised as a rule, expected a model's folder with safetensors in bf16, f16 \
             or f32, as `hf download` makes it"
        }
        "safetensors" | "ckpt" | "pt" | "pth" | "bin" => {
            "one file of weights, as ComfyUI takes it, expected a model's folder with its configurations and all parts, \
             as `hf download` makes it"
        }
        _ => "a file, expected a model's folder",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A cache that has snapshots `a` and `b` of ORG/TWO, with main at `b`, and one of ORG/ONE.
    fn filled() -> tempfile::TempDir {
        let cache = tempfile::tempdir().unwrap();
        for snapshot in [
            "ORG--TWO/snapshots/a",
            "ORG--TWO/snapshots/b",
            "ORG--ONE/snapshots/c",
        ] {
            fs::create_dir_all(cache.path().join(format!("models--{snapshot}"))).unwrap();
        }
        fs::create_dir(cache.path().join("models--ORG--TWO/refs")).unwrap();
        fs::write(cache.path().join("models--ORG--TWO/refs/main"), "b\n").unwrap();
        cache
    }

    fn refused(path: &str, cache: &Path) -> String {
        locate_in(path.as_ref(), Some(cache))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn ids_and_repositories_lead_to_the_snapshot() {
        let cache = filled();
        let found = |path: &Path| locate_in(path, Some(cache.path())).unwrap();
        let [one, two] =
            ["ONE", "TWO"].map(|name| cache.path().join(format!("models--ORG--{name}")));
        assert_eq!(found("ORG/TWO".as_ref()), two.join("snapshots/b"));
        assert_eq!(found(&two), two.join("snapshots/b"));
        assert_eq!(found("ORG/ONE/".as_ref()), one.join("snapshots/c"));
        // The snapshot itself is a folder like any other.
        let snapshot = two.join("snapshots/a");
        assert_eq!(found(&snapshot), snapshot);
    }

    #[test]
    fn a_folder_of_the_name_wins() {
        // Tests run in the crate's folder.
        let path = Path::new("src/weights");
        let cache = tempfile::tempdir().unwrap();
        fs::create_dir_all(cache.path().join("models--src--weights/snapshots/a")).unwrap();
        assert_eq!(locate_in(path, Some(cache.path())).unwrap(), path);
    }

    #[test]
    fn snapshots_that_none_can_be_chosen_of_are_said() {
        let cache = filled();
        fs::write(cache.path().join("models--ORG--TWO/refs/main"), "gone").unwrap();
        assert!(refused("ORG/TWO", cache.path()).contains("2 snapshots and no refs/main"));
        fs::remove_dir(cache.path().join("models--ORG--ONE/snapshots/c")).unwrap();
        assert!(refused("ORG/ONE", cache.path()).contains("no snapshot"));
    }

    #[test]
    fn what_is_absent_comes_with_the_command_that_downloads_it() {
        let cache = filled();
        let text = refused("ORG/OTHER", cache.path());
        assert!(text.contains(&cache.path().display().to_string()), "{text}");
        assert!(text.ends_with("`hf download ORG/OTHER`"), "{text}");
        let text = refused("black-forest-labs/FLUX.1-Kontext-dev", cache.path());
        let command = "`hf download black-forest-labs/FLUX.1-Kontext-dev --exclude flux1-kontext-dev.safetensors`";
        assert!(
            text.contains(command) && text.contains("hf auth login"),
            "{text}"
        );
        let text = refused("models/Qwen-Image-Edit-2509", cache.path());
        let command =
            "`hf download Qwen/Qwen-Image-Edit-2509 --local-dir models/Qwen-Image-Edit-2509`";
        assert!(text.ends_with(command), "{text}");
    }

    #[test]
    fn what_can_be_no_id_is_left_to_its_reader() {
        let cache = filled();
        for path in [
            "nowhere",
            "/no/where",
            "./no/where",
            "../where",
            "a/b/c",
            "src/nothing",
            "a b/c",
        ] {
            assert_eq!(
                locate_in(path.as_ref(), Some(cache.path())).unwrap(),
                Path::new(path)
            );
        }
    }

    #[test]
    fn a_file_is_no_model() {
        let folder = tempfile::tempdir().unwrap();
        for (name, part) in [
            ("m.gguf", "GGUF"),
            ("m.safetensors", "ComfyUI"),
            ("m.txt", "a file"),
        ] {
            let path = folder.path().join(name);
            fs::write(&path, "").unwrap();
            let text = refused(path.to_str().unwrap(), folder.path());
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn the_cache_is_where_the_hubs_client_has_it() {
        let of = |set: &[(&str, &str)]| {
            cache(|name| {
                let found = set.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| PathBuf::from(value))
            })
        };
        let home = ("HOME", "/h");
        assert_eq!(of(&[home]), Some("/h/.cache/huggingface/hub".into()));
        assert_eq!(
            of(&[home, ("XDG_CACHE_HOME", "/x")]),
            Some("/x/huggingface/hub".into())
        );
        assert_eq!(of(&[home, ("HF_HOME", "/hf")]), Some("/hf/hub".into()));
        let all = [home, ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")];
        assert_eq!(of(&all), Some("/c".into()));
        assert_eq!(of(&[]), None);
    }
}
