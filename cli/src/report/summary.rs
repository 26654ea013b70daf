//! The numbers of a finished run: what `report.json` holds and the page shows.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context;
use retouch_evaluation::HeldOut;
use serde::{Deserialize, Serialize};

/// One committed iteration as the curves show it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct IterationPoint {
    pub(crate) iteration: u32,
    pub(crate) reward_mean: Option<f64>,
    pub(crate) reward_std: Option<f64>,
    pub(crate) filter_rate: Option<f64>,
    pub(crate) policy_loss: Option<f64>,
    pub(crate) kl_div: Option<f64>,
    pub(crate) old_deviate: Option<f64>,
    pub(crate) grad_norm: Option<f64>,
    pub(crate) seconds: Option<f64>,
    /// Mean score by reward term, watched ones included.
    #[serde(default)]
    pub(crate) reward_terms: BTreeMap<String, f64>,
}

/// `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) name: String,
    /// `finished` or `stopped`.
    pub(crate) state: String,
    pub(crate) iterations: u32,
    pub(crate) heldout: HeldOut,
    /// Content hash of the exported EMA adapter.
    pub(crate) adapter: String,
    /// Wall-clock seconds from launch to report; the sum over launches for a resumed run.
    pub(crate) wall_s: f64,
    /// Highest sum of resident memory over all processes of the run.
    pub(crate) peak_rss_mib: f64,
    /// Seconds by stage: rollout, score, train, evaluate.
    pub(crate) stage_s: BTreeMap<String, f64>,
    pub(crate) curve: Vec<IterationPoint>,
}

impl Report {
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n").with_context(|| format!("can't write {}", path.display()))
    }
}
