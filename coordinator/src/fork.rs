//! A new run from an old one's last checkpoint, with settings that the old one can't continue with.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use retouch_dataset::{DatasetError, Split};
use retouch_proto::files::{beside, put_in_place};
use retouch_proto::run_folder::{CheckpointFile, RunFolder, adapter_name};
use retouch_proto::{Iteration, RunConfig};

use crate::dataset;
use crate::settings;
use crate::store::{Origin, StoreError};

/// Sections that a learner's state is made for.
const STATE_SECTIONS: [&str; 2] = ["model", "lora"];

/// Why no new run can begin from an old one.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// The new folder is another run's, or anything else.
    #[error("{} is not empty: a new run begins in a folder of its own", .0.display())]
    NotEmpty(PathBuf),
    /// The old run has nothing to begin from.
    #[error("the run in {} has no whole checkpoint{}", old.display(), reasons(.problems))]
    NoCheckpoint {
        /// The old run folder.
        old: PathBuf,
        /// What is wrong with those that it has.
        problems: Vec<String>,
    },
    /// The state is for another model or adapter.
    #[error(
        "the checkpoint does not fit the new settings: {}; give the old values", .differences.join(", ")
    )]
    DoesNotFit {
        /// `key: old -> new`.
        differences: Vec<String>,
    },
    /// The new run's dataset.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The old record can't be read, or the new one can't be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file can't be copied.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn reasons(problems: &[String]) -> String {
    match problems {
        [] => String::new(),
        problems => format!(": {}", problems.join(", ")),
    }
}

/// Begins a run in an empty folder from an old run's newest whole checkpoint, which is returned. The old folder stays as
/// it is; its run may be under way.
///
/// # Errors
/// If the new folder is not empty, the old run has no whole checkpoint or one that does not fit `config`, or files can't
/// be read or written. The new folder is then as it was.
pub fn fork(old: &RunFolder, new: &RunFolder, config: &RunConfig) -> Result<Iteration, ForkError> {
    if fs::read_dir(new.path()).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(ForkError::NotEmpty(new.path().to_owned()));
    }
    let rows = retouch_dataset::read(Path::new(&config.dataset.path), Split::Train)?;
    let no_checkpoint = |problems| ForkError::NoCheckpoint {
        old: old.path().to_owned(),
        problems,
    };
    let origin = Origin::open(old)?.ok_or_else(|| no_checkpoint(Vec::new()))?;
    let mut differences =
        settings::differences_within(&STATE_SECTIONS, origin.config_toml(), config)
            .map_err(|problem| StoreError::damaged("meta.config", problem))?;
    let given = config.rollout.staleness_max;
    let before =
        RunConfig::from_toml(origin.config_toml()).map_or(given, |old| old.rollout.staleness_max);
    if given > before {
        // The next iterations would be sampled by older policies than the checkpoint has.
        differences.push(format!(
            "rollout.staleness_max: {before} -> {given} (at most {before})"
        ));
    }
    if !differences.is_empty() {
        return Err(ForkError::DoesNotFit { differences });
    }
    let checkpoint = origin.checkpoint().map_err(no_checkpoint)?;
    let mut names: Vec<String> = checkpoint.files().map(|(_, name)| name).collect();
    // What the old run started from is the reference of its learners, and of the new one's.
    let initial =
        [CheckpointFile::State, CheckpointFile::Version].map(CheckpointFile::initial_name);
    names.extend(initial.into_iter().filter(|name| old.join(name).is_file()));
    if let Some(adapter) = checkpoint.ema_adapter {
        names.extend(files_of(old, &adapter_name(&adapter.to_string()))?);
    }
    let copied = names.iter().try_for_each(|name| {
        let to = new.join(name);
        copy(&old.join(name), &to).map_err(|source| ForkError::Io { path: to, source })
    });
    // The record last: with it, the folder is a run.
    let begun = copied.and_then(|()| {
        let begun = origin.begin(new, checkpoint.clone(), config, &dataset::hash(&rows));
        Ok(begun?)
    });
    if begun.is_err() {
        for left in [new.checkpoints(), new.adapters(), new.join("initial")] {
            // The first error is the one to tell.
            let _ = fs::remove_dir_all(left);
        }
    }
    begun.map(|()| checkpoint.committed.iteration)
}

/// The names of a folder's files in the run folder.
fn files_of(run: &RunFolder, folder: &str) -> Result<Vec<String>, ForkError> {
    let path = run.join(folder);
    let entries = fs::read_dir(&path).map_err(|source| ForkError::Io { path, source })?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.map(|name| format!("{folder}/{name}")).collect())
}

pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    let partial = beside(to, "partial");
    fs::copy(from, &partial)?;
    put_in_place(&partial, to)
}

#[cfg(test)]
mod tests;
