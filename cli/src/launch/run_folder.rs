//! The run folder as `launch` sees it: created once, continued when the run file is the same, refused otherwise.

use std::{fs::File, ops::Deref, path::Path};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use retouch_proto::{
    RunConfig, RunFolder,
    files::{PUBLIC, write_whole},
};

/// A run folder that this process alone may launch from.
pub(crate) struct OwnedFolder {
    folder: RunFolder,
    _lock: Flock<File>,
}

impl OwnedFolder {
    /// Creates or reopens the folder and writes the resolved `config.toml`.
    ///
    /// # Errors
    /// If another launch holds the folder, or it belongs to a run with other settings.
    pub(crate) fn open(config: &RunConfig) -> anyhow::Result<Self> {
        let folder = RunFolder::new(&config.run_dir);
        let path = folder.path();
        std::fs::create_dir_all(path)
            .with_context(|| format!("can't create the run folder {}", path.display()))?;
        let lock = lock(&folder.launch_lock())?;
        let folder = Self {
            folder,
            _lock: lock,
        };
        folder.keep_config(config)?;
        Ok(folder)
    }

    fn keep_config(&self, config: &RunConfig) -> anyhow::Result<()> {
        let file = self.config();
        let ours = config.to_toml();
        match std::fs::read_to_string(&file) {
            Ok(theirs) if theirs == ours => Ok(()),
            Ok(theirs) => bail!(
                "{} holds a run with other settings; choose another run_dir or remove the folder:\n{}",
                self.path().display(),
                differences(&theirs, &ours),
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                write_whole(&file, ours, PUBLIC)
                    .with_context(|| format!("can't write {}", file.display()))
            }
            Err(error) => Err(error).with_context(|| format!("can't read {}", file.display())),
        }
    }
}

impl Deref for OwnedFolder {
    type Target = RunFolder;

    fn deref(&self) -> &RunFolder {
        &self.folder
    }
}

fn lock(path: &Path) -> anyhow::Result<Flock<File>> {
    let file = File::create(path).with_context(|| format!("can't create {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow::anyhow!(
            "another launch holds {} ({error}); wait for it or choose another run_dir",
            path.display()
        )
    })
}

/// The lines that are only in one of two resolved run files.
fn differences(theirs: &str, ours: &str) -> String {
    let only_in = |sign: char, a: &str, b: &str| -> Vec<String> {
        let known: std::collections::HashSet<&str> = b.lines().collect();
        a.lines()
            .filter(|line| !known.contains(line))
            .map(|line| format!("  {sign} {line}"))
            .collect()
    };
    [only_in('-', theirs, ours), only_in('+', ours, theirs)]
        .concat()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_the_lines_that_changed() {
        let text = differences("seed = 1\nx = 2\n", "seed = 3\nx = 2\n");
        assert_eq!(text, "  - seed = 1\n  + seed = 3");
    }

    #[test]
    fn a_folder_is_launched_from_once_at_a_time() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = RunFolder::new(folder.path()).launch_lock();
        let held = lock(&path).expect("free");
        let refused = lock(&path).expect_err("held").to_string();
        assert!(refused.contains("another launch holds"), "{refused}");
        drop(held);
        lock(&path).expect("free again");
    }
}
