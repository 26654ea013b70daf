//! The run folder as `launch` sees it: created once, continued while the run file asks for the same run, refused otherwise.

use std::{fs::File, ops::Deref, path::Path};

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use retouch_coordinator::differences;
use retouch_proto::{
    RunConfig, RunFolder,
    files::{PUBLIC, write_whole},
};

use crate::exit::{UsageError, complain};

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

    /// Leaves the resolved run file for the processes of the run, unless it asks for another run than the one here.
    fn keep_config(&self, config: &RunConfig) -> anyhow::Result<()> {
        let file = self.config();
        let ours = config.to_toml();
        match std::fs::read_to_string(&file) {
            Ok(theirs) if theirs == ours => return Ok(()),
            Ok(theirs) => check_is_same_run(self.path(), &theirs, config)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("can't read {}", file.display()));
            }
        }
        write_whole(&file, ours, PUBLIC).with_context(|| format!("can't write {}", file.display()))
    }
}

fn check_is_same_run(folder: &Path, theirs: &str, config: &RunConfig) -> Result<(), UsageError> {
    let differences = differences(theirs, config).unwrap_or_else(|problem| {
        // The record has it too, and the coordinator compares with that.
        let problem = problem.trim_end();
        complain(format_args!(
            "{}/config.toml is damaged and written anew: {problem}",
            folder.display()
        ));
        Vec::new()
    });
    if differences.is_empty() {
        return Ok(());
    }
    Err(UsageError(format!(
        "{} holds a run with other settings:\n  {}\ngive the old values, or start a new run from its last \
         checkpoint: the same command with --fork NEW_FOLDER",
        folder.display(),
        differences.join("\n  "),
    )))
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
        let path = path.display();
        let problem =
            format!("another launch holds {path} ({error}); wait for it or choose another run_dir");
        UsageError(problem).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &Path) -> RunConfig {
        RunConfig {
            run_dir: folder.display().to_string(),
            ..RunConfig::default()
        }
    }

    #[test]
    fn a_run_continues_with_more_iterations_and_in_a_moved_folder() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let (first, moved) = (parent.path().join("first"), parent.path().join("moved"));
        let config = config(&first);
        drop(OwnedFolder::open(&config).expect("a new folder"));
        std::fs::rename(&first, &moved).expect("moved");
        let more = RunConfig {
            iterations: config.iterations + 1,
            ..self::config(&moved)
        };
        let folder = OwnedFolder::open(&more).expect("the same run");
        let written = std::fs::read_to_string(folder.config()).expect("config.toml");
        assert_eq!(written, more.to_toml());
    }

    #[test]
    fn another_run_is_refused_by_key_with_both_values() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let mut config = config(parent.path());
        drop(OwnedFolder::open(&config).expect("a new folder"));
        config.learner.learning_rate = 0.001;
        let refused = OwnedFolder::open(&config)
            .map(drop)
            .expect_err("another run");
        assert!(refused.is::<UsageError>(), "exit code 2");
        let text = refused.to_string();
        assert!(
            text.contains("\n  learner.learning_rate: 0.0003 -> 0.001\n"),
            "{text}"
        );
        assert!(
            text.contains("--fork NEW_FOLDER") && !text.contains("remove"),
            "{text}"
        );
    }

    #[test]
    fn a_run_file_that_was_cut_short_is_written_anew() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let config = config(parent.path());
        let file = RunFolder::new(parent.path()).config();
        std::fs::write(&file, "seed = ").expect("written");
        drop(OwnedFolder::open(&config).expect("opened"));
        let written = std::fs::read_to_string(file).expect("config.toml");
        assert_eq!(written, config.to_toml());
    }

    #[test]
    fn a_folder_is_launched_from_once_at_a_time() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = RunFolder::new(folder.path()).launch_lock();
        let held = lock(&path).expect("free");
        let refused = lock(&path).expect_err("held");
        assert!(refused.is::<UsageError>(), "exit code 2");
        assert!(
            refused.to_string().contains("another launch holds"),
            "{refused}"
        );
        drop(held);
        lock(&path).expect("free again");
    }
}
