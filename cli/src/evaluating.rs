//! How far the evaluation of a launch is: it says so in the run folder, since its coordinator has ended by then.

use retouch_proto::{
    RunFolder,
    files::{PUBLIC, write_whole},
};
use serde::{Deserialize, Serialize};

/// Held-out pairs that are done, of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Evaluating {
    pub(crate) done: u64,
    pub(crate) pairs: u64,
}

impl Evaluating {
    /// What the folder says; nothing unless a launch evaluates, or died while it did.
    pub(crate) fn load(folder: &RunFolder) -> Option<Self> {
        let text = std::fs::read_to_string(folder.evaluation()).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Says it to whoever looks. A disk that has no room for it is no reason to stop evaluating.
    pub(crate) fn save(self, folder: &RunFolder) {
        if let Ok(text) = serde_json::to_string(&self) {
            let _ = write_whole(&folder.evaluation(), text, PUBLIC);
        }
    }

    /// Nothing is being evaluated.
    pub(crate) fn forget(folder: &RunFolder) {
        let _ = std::fs::remove_file(folder.evaluation());
    }
}
