//! The training log: one JSON line per update.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The log's file in the output folder.
pub const FILE: &str = "log.jsonl";

/// What one update tells.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The update, counted from 1.
    pub step: u64,
    /// Mean training loss of the batch.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// Wall time of the update in seconds.
    pub seconds: f64,
    /// Mean loss on the held-out rows, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
}

/// Why the log can't be kept.
#[derive(Debug, thiserror::Error)]
#[error("training log {path}: {source}")]
pub struct LogError {
    path: PathBuf,
    source: io::Error,
}

/// The open log of a training.
pub(super) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log of `folder` and drops what was written after update `step`.
    pub(super) fn open(folder: &Path, step: u64) -> Result<Self, LogError> {
        let path = folder.join(FILE);
        let open = || {
            let text = match fs::read_to_string(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
                text => text?,
            };
            let until =
                |line: &&str| serde_json::from_str(line).is_ok_and(|e: Entry| e.step <= step);
            let kept: String = text
                .lines()
                .filter(until)
                .map(|line| format!("{line}\n"))
                .collect();
            fs::write(&path, kept)?;
            OpenOptions::new().append(true).open(&path)
        };
        match open() {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(LogError { path, source }),
        }
    }

    pub(super) fn write(&mut self, entry: &Entry) -> Result<(), LogError> {
        let mut line = serde_json::to_string(entry).expect("entries are numbers");
        line.push('\n');
        let written = self.file.write_all(line.as_bytes());
        written.map_err(|source| LogError {
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reopening_drops_what_a_checkpoint_does_not_know() {
        let folder = tempfile::tempdir().unwrap();
        let entry = |step| Entry {
            step,
            loss: 0.5,
            grad_norm: 1.0,
            learning_rate: 1e-3,
            seconds: 0.1,
            validation_loss: (step == 2).then_some(0.25),
        };
        let mut log = Log::open(folder.path(), 0).unwrap();
        (1..=4).for_each(|step| log.write(&entry(step)).unwrap());
        let mut log = Log::open(folder.path(), 2).unwrap();
        log.write(&entry(3)).unwrap();
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        let entries: Vec<Entry> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(entries, [entry(1), entry(2), entry(3)]);
    }
}
