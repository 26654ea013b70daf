//! The numbers of a finished run: what `report.json` holds and the page shows.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context;
use retouch_evaluation::HeldOut;
use retouch_proto::{
    files::{PUBLIC, write_whole},
    metrics::METRICS,
    status::IterationMetrics,
};
use serde::{Deserialize, Serialize};

/// One committed iteration as the curves show it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct IterationPoint {
    pub(crate) iteration: u32,
    /// Every metric that has a chart, by name.
    #[serde(flatten)]
    pub(crate) values: BTreeMap<String, Option<f64>>,
    /// Mean score by reward term, watched ones included.
    #[serde(default)]
    pub(crate) reward_terms: BTreeMap<String, f64>,
}

impl From<&IterationMetrics> for IterationPoint {
    fn from(metrics: &IterationMetrics) -> Self {
        let charted = METRICS.iter().filter(|metric| metric.chart.is_some());
        Self {
            iteration: metrics.iteration.0,
            values: charted
                .map(|metric| (metric.name.to_owned(), metric.value(metrics)))
                .collect(),
            reward_terms: metrics.reward_terms.clone(),
        }
    }
}

/// `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) name: String,
    /// `finished`, `stopped` or `running`.
    pub(crate) state: String,
    pub(crate) iterations: u32,
    pub(crate) heldout: HeldOut,
    /// Content hash of the exported EMA adapter.
    pub(crate) adapter: String,
    /// The iteration after which it was exported; later ones are not in it.
    pub(crate) adapter_iteration: u32,
    /// Wall-clock seconds from launch to report; the sum over launches for a resumed run.
    pub(crate) wall_s: f64,
    /// Highest sum of resident memory over all processes of the run.
    pub(crate) peak_rss_mib: f64,
    /// Seconds by stage: rollout, score, train, evaluate.
    pub(crate) stage_s: BTreeMap<String, f64>,
    pub(crate) curve: Vec<IterationPoint>,
}

impl Report {
    /// Of which iteration the adapter is, and what came after.
    pub(crate) fn adapter_age(&self) -> String {
        let (of, last) = (self.adapter_iteration, self.iterations);
        match last.saturating_sub(of) {
            0 => format!("of iteration {of}"),
            1 => format!("of iteration {of}; iteration {last} is not in it yet"),
            _ => format!(
                "of iteration {of}; iterations {} to {last} are not in it yet",
                of + 1
            ),
        }
    }

    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        let written = write_whole(path, text + "\n", PUBLIC);
        written.with_context(|| format!("can't write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use retouch_proto::task::TrainMetrics;

    use super::*;

    #[test]
    fn a_point_of_the_curve_has_the_names_that_scripts_read() {
        let unscored = IterationMetrics::default();
        let scored = IterationMetrics {
            scored: 1,
            reward_mean: 0.5,
            train: Some(TrainMetrics {
                old_deviate_max: 2.0,
                ..TrainMetrics::default()
            }),
            ..unscored.clone()
        };
        let json = |metrics: &IterationMetrics| {
            serde_json::to_value(IterationPoint::from(metrics)).expect("numbers")
        };
        let names = [
            "iteration",
            "reward_mean",
            "reward_std",
            "filter_rate",
            "policy_loss",
            "kl_div",
            "old_kl_div",
            "old_deviate",
            "old_deviate_max",
            "x0_norm",
            "x0_norm_max",
            "grad_norm",
            "seconds",
        ];
        for name in names {
            assert!(json(&scored)[name].is_number(), "{name}");
            let is_always = ["iteration", "seconds"].contains(&name);
            assert_eq!(json(&unscored)[name].is_null(), !is_always, "{name}");
        }
        assert_eq!(json(&scored)["old_deviate_max"], 2.0);
    }
}
