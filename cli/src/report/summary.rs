//! The numbers of a finished run: what `report.json` holds and the page shows.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context;
use retouch_evaluation::HeldOut;
use retouch_proto::{
    RunConfig,
    files::{PUBLIC, write_whole},
    metrics::METRICS,
    status::IterationMetrics,
};
use serde::{Deserialize, Serialize};

use crate::show::utc;

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

/// What a run and its report were made with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The folder of the base editor.
    pub(crate) model: String,
    /// The folder of the dataset.
    pub(crate) dataset: String,
    pub(crate) seed: u64,
    /// When the report was made, in UTC.
    pub(crate) date: String,
    /// The version of the program that made it.
    pub(crate) version: String,
    /// How the samples that were learned from were made, in words.
    pub(crate) rollout: String,
    /// The judges' names, folders and weights, in words.
    pub(crate) judges: String,
    /// What the learner was set to, in words.
    pub(crate) learner: String,
}

impl Setup {
    /// Of a run with these settings, at this time.
    pub(crate) fn of(config: &RunConfig, unix_ms: u64) -> Self {
        let learner = &config.learner;
        let judges = config.reward.terms.iter().map(|term| {
            let (name, path, weight) = (&term.name, &term.path, term.weight);
            format!("{name}: {path} (weight {weight})")
        });
        Self {
            model: config.model.path.clone(),
            dataset: config.dataset.path.clone(),
            seed: config.seed,
            date: format!("{} UTC", utc(unix_ms)),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            rollout: rollout(config),
            judges: judges.collect::<Vec<_>>().join(", "),
            learner: format!(
                "learning rate {}, nft_beta {}, kl_beta {}, LoRA of rank {}",
                learner.learning_rate, learner.nft_beta, learner.kl_beta, config.lora.adapter.rank,
            ),
        }
    }

    /// Names and values for people, in the order in which they are shown.
    pub(crate) fn facts(&self) -> [(&'static str, String); 8] {
        [
            ("model", self.model.clone()),
            ("data", self.dataset.clone()),
            ("date", self.date.clone()),
            ("seed", self.seed.to_string()),
            ("version", format!("retouch {}", self.version)),
            ("rollouts", self.rollout.clone()),
            ("judges", self.judges.clone()),
            ("learner", self.learner.clone()),
        ]
    }
}

fn rollout(config: &RunConfig) -> String {
    let rollout = &config.rollout;
    format!(
        "{} groups of {}, {} with {} steps, guidance {}, true CFG {}",
        rollout.groups_per_iteration,
        rollout.group_size,
        rollout.solver,
        rollout.num_inference_steps,
        rollout.guidance_scale,
        rollout.true_cfg_scale,
    )
}

/// `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) name: String,
    pub(crate) setup: Setup,
    /// `finished`, `stopped` or `running`.
    pub(crate) state: String,
    pub(crate) iterations: u32,
    /// None if the run file asks for no held-out pairs.
    pub(crate) heldout: Option<HeldOut>,
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
    use retouch_proto::{
        config::{Preset, preset},
        task::TrainMetrics,
    };

    use super::*;

    #[test]
    fn the_setup_names_what_the_run_was_made_with() {
        let mut config = preset(Preset::Tiny);
        config.seed = 7;
        let facts = Setup::of(&config, 1_794_000_000_000).facts();
        let value = |name: &str| {
            let fact = facts.iter().find(|(other, _)| *other == name);
            fact.expect(name).1.as_str()
        };
        assert_eq!(value("model"), "assets/tiny/editor");
        assert_eq!(value("data"), "assets/tiny/dataset");
        assert_eq!(value("seed"), "7");
        assert_eq!(value("date"), "2026-11-06 21:20:00 UTC");
        let version = concat!("retouch ", env!("CARGO_PKG_VERSION"));
        assert_eq!(value("version"), version);
        assert!(value("rollouts").starts_with("8 groups of 12, dpm2 with 6 steps"));
        assert_eq!(value("judges"), "edit: assets/tiny/judge (weight 1)");
        assert!(value("learner").contains("learning rate 0.001"));
    }

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
