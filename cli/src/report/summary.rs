//! The numbers of a finished run: what `report.json` holds and the page shows.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context;
use retouch_tiny::bootstrap::Estimate;
use serde::{Deserialize, Serialize};

/// One measure on the held-out pairs; `gain` is after minus before, paired by held-out pair.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) before: Estimate,
    pub(crate) after: Estimate,
    pub(crate) gain: Estimate,
}

/// The held-out part of the report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct HeldOut {
    /// Number of (image, instruction) pairs.
    pub(crate) pairs: usize,
    /// Score against the known target, 0..5; absent for a dataset without known targets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oracle: Option<Comparison>,
    /// The judge's weighted reward, 0..1.
    pub(crate) judge: Comparison,
    /// Oracle (or, without targets, judge) gain per task kind.
    pub(crate) gain_by_task: BTreeMap<String, Estimate>,
    /// Steps and solver of the evaluation, in words.
    pub(crate) sampling: String,
}

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
