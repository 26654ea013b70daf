//! The numbers of a committed iteration: name, unit, meaning, and where each is shown.
//!
//! [`METRICS`] is read by TensorBoard's file, the report's curves and charts, the iterations that `status` lists, and the
//! stages that `status` and `top` show. A number that is added to [`IterationMetrics`] or [`TrainMetrics`] needs a row here and nothing else.

use Value::{Always, Scored, Top, Trained};

use crate::status::IterationMetrics;
use crate::task::TrainMetrics;

/// What `status` shows of each of the last iterations, by [`Metric::name`].
const STATUS_COLUMNS: [&str; 8] = [
    "reward_mean",
    "reward_std",
    "policy_loss",
    "grad_norm",
    "filter_rate",
    "groups",
    "kept",
    "seconds",
];

/// One number of an iteration.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// The name in `report.json`: the field's; those of [`StageSeconds`](crate::status::StageSeconds) end in `_s`, and
    /// `wall` is `seconds`.
    pub name: &'static str,
    /// What it is about; begins its TensorBoard tag.
    pub section: &'static str,
    /// Its name for people within the section.
    pub label: &'static str,
    /// What its value counts or measures.
    pub unit: &'static str,
    /// Title of its chart on the report page, shared by those that are drawn together; absent from the page without.
    pub chart: Option<&'static str>,
    /// What it is, for people.
    pub meaning: &'static str,
    value: Value,
}

/// Where a metric is read, and which iterations have it.
#[derive(Clone, Copy, Debug)]
enum Value {
    /// Every iteration.
    Always(fn(&IterationMetrics) -> f64),
    /// Those in which a group was scored: the mean of no rewards is no reward of 0 (A5).
    Scored(fn(&IterationMetrics) -> f64),
    /// The same, of the best so many percent of each group.
    Top(&'static str),
    /// Those that trained.
    Trained(fn(&TrainMetrics) -> f64),
}

/// Shares of a group's best candidates whose mean reward is measured, in percent.
pub const TOP_PERCENT: [usize; 5] = [100, 75, 50, 25, 10];

const STEP_STAGES: &str = "step_seconds";

impl Metric {
    /// Its value, if the iteration has one.
    pub fn value(&self, metrics: &IterationMetrics) -> Option<f64> {
        let is_scored = metrics.scored > 0;
        match self.value {
            Always(value) => Some(value(metrics)),
            Scored(value) => is_scored.then(|| value(metrics)),
            Top(percent) => metrics
                .reward_top
                .get(percent)
                .copied()
                .filter(|_| is_scored),
            Trained(value) => metrics.train.as_ref().map(value),
        }
    }

    /// Whether `status` shows it of each of the last iterations.
    pub fn is_in_status(&self) -> bool {
        STATUS_COLUMNS.contains(&self.name)
    }

    /// Its TensorBoard tag, as `train/policy_loss`.
    pub fn tag(&self) -> String {
        format!("{}/{}", self.section, self.label.replace(' ', "_"))
    }
}

impl TrainMetrics {
    /// Where a step's time went, in the order of the work: name and seconds.
    pub fn stages(&self) -> Vec<(&'static str, f64)> {
        let stages = METRICS
            .iter()
            .filter(|metric| metric.section == STEP_STAGES);
        let seconds = |metric: &Metric| match metric.value {
            Trained(value) => Some((metric.label, value(self))),
            _ => None,
        };
        stages.filter_map(seconds).collect()
    }
}

/// A row of the table; see the fields of [`Metric`].
const fn row(
    name: &'static str,
    (section, label): (&'static str, &'static str),
    unit: &'static str,
    chart: Option<&'static str>,
    value: Value,
    meaning: &'static str,
) -> Metric {
    Metric {
        name,
        section,
        label,
        unit,
        chart,
        meaning,
        value,
    }
}

const REWARD: Option<&str> = Some("reward (judge, training groups)");
const SPREAD: Option<&str> = Some("reward spread within groups");
const BEST: Option<&str> = Some("reward of each group's best");
const KL: Option<&str> = Some("KL to the base");
const SECONDS: Option<&str> = Some("seconds per iteration");

/// Every number of an iteration, in the order of the report page's charts and of a training step.
///
/// v_theta, v_old and v_ref are the velocities that the trained policy, the one that sampled and the base predict for a
/// (sample, timestep) pair; "mean square" and "largest" are over the elements of a latent `[S, C]`.
#[rustfmt::skip]
pub static METRICS: [Metric; 46] = [
    row("reward_mean", ("reward", "mean"), "0..1", REWARD, Scored(|m| m.reward_mean),
        "mean of all rewards"),
    row("reward_std", ("reward", "std"), "0..1", REWARD, Scored(|m| m.reward_std),
        "population standard deviation of all rewards"),
    row("reward_std_mean", ("reward", "std in group"), "0..1", SPREAD, Scored(|m| m.reward_std_mean),
        "mean over groups of the group's standard deviation"),
    row("zero_std_ratio", ("reward", "zero_std_ratio"), "share", SPREAD, Scored(|m| m.zero_std_ratio),
        "share of groups whose rewards are all equal: nothing can be learned from them"),
    row("reward_top_100", ("reward", "top 100"), "0..1", BEST, Top("100"),
        "mean over groups of the group's mean"),
    row("reward_top_75", ("reward", "top 75"), "0..1", BEST, Top("75"),
        "mean over groups of the mean of the group's best 75 %"),
    row("reward_top_50", ("reward", "top 50"), "0..1", BEST, Top("50"),
        "mean over groups of the mean of the group's best 50 %"),
    row("reward_top_25", ("reward", "top 25"), "0..1", BEST, Top("25"),
        "mean over groups of the mean of the group's best 25 %"),
    row("reward_top_10", ("reward", "top 10"), "0..1", BEST, Top("10"),
        "mean over groups of the mean of the group's best 10 %"),
    row("entropy_mean", ("reward", "judge entropy"), "nats", Some("the judge's entropy"), Scored(|m| m.entropy_mean),
        "mean over candidates and reward terms of the entropy of the judge's digits, watched terms aside"),

    row("policy_loss", ("train", "policy loss"), "loss", Some("policy loss"), Trained(|t| t.policy_loss),
        "mean over pairs of the DiffusionNFT loss without its KL term"),
    row("kl_div", ("train", "kl_div"), "velocity^2", KL, Trained(|t| t.kl_div),
        "mean over pairs of the mean square of v_theta - v_ref; 0 where learner.kl_beta = 0 leaves v_ref out"),
    row("old_kl_div", ("train", "old_kl_div"), "velocity^2", KL, Trained(|t| t.old_kl_div),
        "mean over pairs of the mean square of v_old - v_ref; 0 where learner.kl_beta = 0 leaves v_ref out"),
    row("old_deviate", ("train", "old_deviate"), "velocity^2", Some("distance from the old policy"), Trained(|t| t.old_deviate),
        "mean over pairs of the mean square of v_theta - v_old; 0 where the trained policy itself sampled"),
    row("old_deviate_max", ("train", "old_deviate_max"), "velocity^2", Some("largest distance from the old policy"), Trained(|t| t.old_deviate_max),
        "largest squared element of v_theta - v_old over all pairs"),
    row("x0_norm", ("train", "x0_norm"), "latent^2", Some("size of the clean latents"), Trained(|t| t.x0_norm),
        "mean over pairs of the mean square of x0, the clean latents that were sampled (not a prediction of them)"),
    row("x0_norm_max", ("train", "x0_norm_max"), "latent^2", Some("largest of the clean latents"), Trained(|t| t.x0_norm_max),
        "largest squared element of x0 over all pairs"),
    row("grad_norm", ("train", "grad_norm"), "loss per weight", Some("gradient norm"), Trained(|t| t.grad_norm),
        "2-norm of the mean gradient over all of the adapter's weights, before clipping"),
    row("learning_rate", ("train", "learning_rate"), "per update", None, Trained(|t| t.learning_rate),
        "the optimizer's learning rate, warm-up included"),
    row("samples", ("train", "samples"), "candidates", None, Trained(|t| t.samples as f64),
        "candidates learned from, without those dropped for not being finite"),
    row("pairs", ("train", "pairs"), "pairs", None, Trained(|t| t.pairs as f64),
        "(sample, timestep) pairs learned from"),

    row("filter_rate", ("groups", "filter_rate"), "share", Some("groups filtered"), Scored(|m| m.filter_rate),
        "share of scored groups left out by the filter"),
    row("groups", ("groups", "drawn"), "groups", None, Always(|m| m.groups.into()),
        "groups drawn, refill rounds included"),
    row("scored", ("groups", "scored"), "groups", None, Always(|m| m.scored.into()),
        "groups with scores"),
    row("kept", ("groups", "kept"), "groups", None, Always(|m| m.kept.into()),
        "groups trained on"),
    row("filtered", ("groups", "filtered"), "groups", None, Always(|m| m.filtered.into()),
        "groups left out by the filter"),
    row("dropped", ("groups", "dropped"), "groups", None, Always(|m| m.dropped.into()),
        "groups given up after failures"),
    row("banned", ("groups", "banned"), "pairs", None, Always(|m| m.banned.into()),
        "(image, instruction) pairs newly put on the ban list"),
    row("banned_total", ("groups", "banned total"), "pairs", None, Always(|m| m.banned_total.into()),
        "(image, instruction) pairs on the ban list"),
    row("refill_rounds", ("groups", "refill rounds"), "rounds", None, Always(|m| m.refill_rounds.into()),
        "rounds in which replacements for filtered groups were drawn"),
    row("samples_trained", ("groups", "samples trained"), "candidates", None, Always(|m| m.samples_trained.into()),
        "candidates of the groups trained on"),

    row("seconds", ("seconds", "iteration"), "s", SECONDS, Always(|m| m.stage_s.wall),
        "from the first draw to the commit"),
    row("collect_s", ("seconds", "collect"), "s", SECONDS, Always(|m| m.stage_s.collect),
        "from the first draw to the seal"),
    row("train_s", ("seconds", "train"), "s", SECONDS, Always(|m| m.stage_s.train),
        "from the seal to the commit"),
    row("rollout_s", ("seconds", "rollout workers"), "s", None, Always(|m| m.stage_s.rollout),
        "rollout workers' time, summed over them"),
    row("score_s", ("seconds", "reward workers"), "s", None, Always(|m| m.stage_s.score),
        "reward workers' time, summed over them"),

    // Rank 0's training step, in the order of the work.
    row("fetch_s", (STEP_STAGES, "data wait"), "s", None, Trained(|t| t.fetch_s),
        "waiting for blobs"),
    row("prepare_s", (STEP_STAGES, "prepare"), "s", None, Trained(|t| t.prepare_s),
        "noise and batches"),
    row("v_old_s", (STEP_STAGES, "v_old"), "s", None, Trained(|t| t.v_old_s),
        "forward passes of the old policy"),
    row("v_ref_s", (STEP_STAGES, "v_ref"), "s", None, Trained(|t| t.v_ref_s),
        "forward passes of the base"),
    row("forward_s", (STEP_STAGES, "forward"), "s", None, Trained(|t| t.forward_s),
        "forward passes of the trained policy, and the loss"),
    row("backward_s", (STEP_STAGES, "backward"), "s", None, Trained(|t| t.backward_s),
        "backward passes, with what is computed again for them"),
    row("all_reduce_s", (STEP_STAGES, "all-reduce"), "s", None, Trained(|t| t.all_reduce_s),
        "summing gradients over ranks, waiting for the slowest included"),
    row("optimizer_s", (STEP_STAGES, "optimizer"), "s", None, Trained(|t| t.optimizer_s),
        "clipping, AdamW, EMA and old policy"),
    row("checkpoint_s", (STEP_STAGES, "checkpoint"), "s", None, Trained(|t| t.checkpoint_s),
        "writing the checkpoint"),
    row("publish_s", (STEP_STAGES, "publish"), "s", None, Trained(|t| t.publish_s),
        "making state and version into blobs that others can fetch"),
];

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::Value as Json;

    use super::*;
    use crate::ids::Iteration;
    use crate::status::StageSeconds;

    /// Every number is another one. Fields are named one by one: a new one does not compile until it is here.
    fn numbered() -> IterationMetrics {
        let train = TrainMetrics {
            policy_loss: 0.01,
            kl_div: 0.02,
            old_kl_div: 0.03,
            old_deviate: 0.04,
            old_deviate_max: 0.05,
            x0_norm: 0.06,
            x0_norm_max: 0.07,
            grad_norm: 0.08,
            learning_rate: 0.085,
            samples: 101,
            pairs: 102,
            fetch_s: 0.09,
            prepare_s: 0.10,
            v_old_s: 0.11,
            v_ref_s: 0.12,
            forward_s: 0.13,
            backward_s: 0.14,
            all_reduce_s: 0.15,
            optimizer_s: 0.16,
            checkpoint_s: 0.17,
            publish_s: 0.18,
        };
        IterationMetrics {
            iteration: Iteration(103),
            groups: 104,
            scored: 105,
            kept: 106,
            filtered: 107,
            dropped: 108,
            banned: 110,
            banned_total: 111,
            refill_rounds: 112,
            samples_trained: 113,
            reward_mean: 0.19,
            reward_std: 0.20,
            reward_std_mean: 0.21,
            zero_std_ratio: 0.22,
            filter_rate: 0.23,
            reward_top: (TOP_PERCENT
                .iter()
                .map(|percent| (percent.to_string(), *percent as f64 + 0.5)))
            .collect(),
            entropy_mean: 0.24,
            // One for each reward term; TensorBoard and the report name them after it.
            reward_terms: BTreeMap::new(),
            train: Some(train),
            stage_s: StageSeconds {
                rollout: 0.25,
                score: 0.26,
                collect: 0.27,
                train: 0.28,
                wall: 0.29,
            },
            resharded: false,
            version: None,
            ema_adapter: None,
        }
    }

    fn numbers(json: &Json, name: &str, found: &mut BTreeMap<String, f64>) {
        match json {
            Json::Object(fields) => fields
                .iter()
                .for_each(|(name, value)| numbers(value, name, found)),
            Json::Number(number) => drop(found.insert(name.to_owned(), number.as_f64().unwrap())),
            _ => {}
        }
    }

    #[test]
    fn every_number_of_an_iteration_is_in_the_table() {
        let metrics = numbered();
        let mut fields = BTreeMap::new();
        numbers(&serde_json::to_value(&metrics).unwrap(), "", &mut fields);
        // The axis on which the others are drawn.
        fields.remove("iteration");
        for (field, number) in &fields {
            let rows = METRICS
                .iter()
                .filter(|metric| metric.value(&metrics) == Some(*number));
            let names: Vec<&str> = rows.map(|metric| metric.name).collect();
            let [name] = names[..] else {
                panic!("{field} is shown by {names:?}, expected one row");
            };
            let named = [
                field.clone(),
                format!("reward_top_{field}"),
                format!("{field}_s"),
            ];
            assert!(
                named.contains(&name.to_owned()) || (field, name) == (&"wall".into(), "seconds"),
                "{field}, {name}"
            );
        }
        assert_eq!(fields.len(), METRICS.len());
    }

    #[test]
    fn names_and_tags_are_unique() {
        let names: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
        let tags: BTreeSet<String> = METRICS.iter().map(Metric::tag).collect();
        assert_eq!((names.len(), tags.len()), (METRICS.len(), METRICS.len()));
        assert!(
            METRICS
                .iter()
                .all(|metric| !metric.unit.is_empty() && !metric.meaning.is_empty())
        );
    }

    #[test]
    fn status_shows_numbers_of_the_table() {
        let shown = METRICS.iter().filter(|metric| metric.is_in_status());
        let names: Vec<&str> = shown.map(|metric| metric.name).collect();
        assert_eq!(names, STATUS_COLUMNS, "in the table's order");
    }

    #[test]
    fn what_did_not_happen_has_no_value() {
        let metrics = |scored: u32| IterationMetrics {
            scored,
            train: None,
            ..numbered()
        };
        let present = |metrics: &IterationMetrics| -> BTreeSet<&str> {
            let present = METRICS
                .iter()
                .filter(|metric| metric.value(metrics).is_some());
            present.map(|metric| metric.section).collect()
        };
        assert_eq!(present(&metrics(0)), BTreeSet::from(["groups", "seconds"]));
        assert_eq!(
            present(&metrics(1)),
            BTreeSet::from(["groups", "reward", "seconds"])
        );
    }

    #[test]
    fn stages_are_in_the_order_of_the_work() {
        let stages = TrainMetrics {
            fetch_s: 1.0,
            publish_s: 2.0,
            ..TrainMetrics::default()
        }
        .stages();
        let names: Vec<&str> = stages.iter().map(|(name, _)| *name).collect();
        let expected = [
            "data wait",
            "prepare",
            "v_old",
            "v_ref",
            "forward",
            "backward",
            "all-reduce",
            "optimizer",
            "checkpoint",
            "publish",
        ];
        assert_eq!(names, expected);
        assert_eq!((stages[0].1, stages[9].1), (1.0, 2.0));
    }
}
