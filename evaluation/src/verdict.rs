//! What an oracle says of an edit.

use serde::{Deserialize, Serialize};

/// The best score of a [`Verdict`].
pub const ORACLE_MAX: f64 = 5.0;

/// How good an edit is by its known target, part by part, each 0..=1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// What was asked for.
    pub changed: f64,
    /// The objects that had to stay, by the worst of them; `None` where there is none.
    pub kept: Option<f64>,
    /// The background that had to stay; `None` where it had to change.
    pub background: Option<f64>,
}

impl Verdict {
    /// The worst part times [`ORACLE_MAX`]: an edit that does what was asked and ruins the rest is a bad edit.
    pub fn score(self) -> f64 {
        let rest = [self.kept, self.background].into_iter().flatten();
        ORACLE_MAX * rest.fold(self.changed, f64::min)
    }
}
