//! What must hold between values.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::errors::{ConfigErrors, Problem};
use super::{CollectiveKind, FilterRule, Reference, RewardTerm, RunConfig};
use crate::limits::{GROUP_SIZE_MAX, GROUPS_MAX, RANKS_MAX, SOURCES_MAX, STALENESS_MAX, TERMS_MAX};

impl RunConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// All problems at once, each with its key, the wrong value and what would be right.
    pub fn validate(&self) -> Result<(), ConfigErrors> {
        ConfigErrors::check(problems(self, |_| "run file".into()))
    }
}

/// Collects problems with the origin of the keys they are about.
struct Checks<F> {
    origin: F,
    problems: Vec<Problem>,
}

impl<F: Fn(&str) -> String> Checks<F> {
    /// A value has one problem at a time: what else is wrong with it mostly follows from that.
    fn must(&mut self, holds: bool, key: &str, value: impl ToString, right: impl AsRef<str>) {
        if !holds && self.problems.iter().all(|problem| problem.key != key) {
            let problem = format!("{} {}", value.to_string(), right.as_ref());
            self.problems.push(Problem {
                origin: (self.origin)(key),
                key: key.into(),
                problem,
            });
        }
    }

    fn within<T: PartialOrd + Display>(&mut self, key: &str, value: T, range: RangeInclusive<T>) {
        let right = format!("is not in {}..={}", range.start(), range.end());
        self.must(range.contains(&value), key, value, right);
    }

    fn text(&mut self, key: &str, value: &str) {
        self.must(
            !value.trim().is_empty(),
            key,
            format!("{value:?}"),
            "is empty",
        );
    }
}

/// Checks that a section's value is in a range; names it once, for its key and its value.
macro_rules! within {
    ($checks:ident, $section:ident.$field:ident, $range:expr) => {
        $checks.within(
            concat!(stringify!($section), ".", stringify!($field)),
            $section.$field,
            $range,
        )
    };
}

/// All problems, each with the origin of its key.
pub(super) fn problems(config: &RunConfig, origin: impl Fn(&str) -> String) -> Vec<Problem> {
    let mut checks = Checks {
        origin,
        problems: Vec::new(),
    };
    run(config, &mut checks);
    model(config, &mut checks);
    rollout(config, &mut checks);
    reward(config, &mut checks);
    filter_and_advantage(config, &mut checks);
    learner(config, &mut checks);
    alarms(config, &mut checks);
    checkpoint(config, &mut checks);
    lora(config, &mut checks);
    cluster(config, &mut checks);
    samples(config, &mut checks);
    evaluation(config, &mut checks);
    checks.problems
}

fn run<F: Fn(&str) -> String>(config: &RunConfig, checks: &mut Checks<F>) {
    checks.text("run_dir", &config.run_dir);
    checks.within("iterations", config.iterations, 1..=10_000_000);
    // TOML numbers are signed.
    checks.within("seed", config.seed, 0..=i64::MAX as u64);
    let dataset = &config.dataset;
    checks.text("dataset.path", &dataset.path);
    within!(checks, dataset.sources_max, 0..=SOURCES_MAX as u32);
}

fn model<F: Fn(&str) -> String>(config: &RunConfig, checks: &mut Checks<F>) {
    let model = &config.model;
    checks.text("model.path", &model.path);
    for (key, pixels) in [("model.height", model.height), ("model.width", model.width)] {
        checks.within(key, pixels, 16..=8192);
        checks.must(pixels % 16 == 0, key, pixels, "is not a multiple of 16");
    }
    within!(checks, model.max_sequence_length, 1..=4096);
}

fn rollout<F: Fn(&str) -> String>(config: &RunConfig, checks: &mut Checks<F>) {
    let rollout = &config.rollout;
    let rounds = config.filter.refill_rounds_max.saturating_add(1);
    let groups_max = GROUPS_MAX as u32 / rounds.min(GROUPS_MAX as u32);
    within!(checks, rollout.groups_per_iteration, 1..=groups_max);
    within!(checks, rollout.group_size, 2..=GROUP_SIZE_MAX as u32);
    within!(checks, rollout.num_inference_steps, 1..=1000);
    within!(checks, rollout.guidance_scale, 0.0..=100.0);
    within!(checks, rollout.true_cfg_scale, 1.0..=100.0);
    within!(checks, rollout.staleness_max, 0..=STALENESS_MAX as u32);
}

fn reward<F: Fn(&str) -> String>(config: &RunConfig, checks: &mut Checks<F>) {
    let terms = &config.reward.terms;
    checks.within("reward.terms", terms.len(), 1..=TERMS_MAX);
    for (index, term) in terms.iter().enumerate() {
        let key = |field: &str| format!("reward.terms[{index}].{field}");
        checks.text(&key("name"), &term.name);
        checks.text(&key("path"), &term.path);
        checks.text(&key("template"), &term.template);
        let valid = term.weight.is_finite() && term.weight >= 0.0;
        let right = "is not a weight: give a positive one, or 0 for a term that is only watched";
        checks.must(valid, &key("weight"), term.weight, right);
        let is_taken = terms[..index].iter().any(|other| other.name == term.name);
        let right = "is the name of an earlier term";
        checks.must(!is_taken, &key("name"), format!("{:?}", term.name), right);
    }
    // Without terms, that is the problem.
    let watched_alone = !terms.is_empty() && terms.iter().all(RewardTerm::is_watched);
    let right =
        "is the weight of every term, which leaves no reward: give one of them a weight above 0";
    checks.must(!watched_alone, "reward.terms", 0, right);
}

fn filter_and_advantage<F: Fn(&str) -> String>(config: &RunConfig, checks: &mut Checks<F>) {
    let RunConfig {
        filter, advantage, ..
    } = config;
    within!(checks, filter.tau_mean, 0.0..=1.0);
    within!(checks, filter.tau_std, 0.0..=1.0);
    within!(checks, filter.refill_rounds_max, 0..=100);
    let refills_something = filter.rule != FilterRule::None || filter.refill_rounds_max == 0;
    let right = "refills nothing when filter.rule is none";
    checks.must(
        refills_something,
        "filter.refill_rounds_max",
        filter.refill_rounds_max,
        right,
    );
    within!(checks, advantage.adv_clip_max, 1e-6..=1e6);
}

fn learner<F: Fn(&str) -> String>(config: &RunConfig, checks: &mut Checks<F>) {
    let learner = &config.learner;
    within!(checks, learner.ranks, 1..=RANKS_MAX as u32);
    within!(checks, learner.gradient_shards, 1..=RANKS_MAX as u32);
    within!(checks, learner.ranks_min, 1..=learner.ranks.max(1));
    if learner.ranks_max != 0 {
        let key = "learner.ranks_max";
        checks.within(key, learner.ranks_max, learner.ranks..=RANKS_MAX as u32);
    }
    // Shards are no multiple of a number of ranks that is wrong itself.
    let divides = !(1..=RANKS_MAX as u32).contains(&learner.ranks)
        || learner.gradient_shards.is_multiple_of(learner.ranks);
    let right = format!("is not a multiple of learner.ranks = {}", learner.ranks);
    checks.must(
        divides,
        "learner.gradient_shards",
        learner.gradient_shards,
        right,
    );
    within!(checks, learner.micro_batch_size, 1..=4096);
    within!(checks, learner.nft_beta, 1e-6..=10.0);
    within!(checks, learner.kl_beta, 0.0..=1e3);
    checks.must(
        learner.reference == Reference::Base || !config.lora.init.is_empty(),
        "learner.reference",
        learner.reference,
        "is the adapter of lora.init, which names none: give lora.init, or base",
    );
    within!(checks, learner.learning_rate, 0.0..=1.0);
    within!(checks, learner.warmup_iterations, 0..=1_000_000);
    within!(checks, learner.adam_beta1, 0.0..=0.999_999);
    within!(checks, learner.adam_beta2, 0.0..=0.999_999_9);
    within!(checks, learner.adam_epsilon, 1e-30..=1.0);
    within!(checks, learner.weight_decay, 0.0..=1.0);
    within!(checks, learner.max_grad_norm, 1e-12..=1e12);
    within!(checks, learner.timestep_fraction, 0.0..=1.0);
    let steps = config.rollout.num_inference_steps;
    let trained = (f64::from(steps) * learner.timestep_fraction).floor();
    let right = format!("leaves none of rollout.num_inference_steps = {steps} to train on");
    checks.must(
        steps == 0 || trained >= 1.0,
        "learner.timestep_fraction",
        learner.timestep_fraction,
        right,
    );
    within!(checks, learner.ema_decay_max, 0.0..=1.0);
    within!(checks, learner.checkpoint_every, 1..=1_000_000);
    let sums_on_gpus = learner.collective == CollectiveKind::Nccl;
    checks.must(
        !sums_on_gpus || learner.device.are_cards(),
        "learner.collective",
        learner.collective,
        format!(
            "sums on GPUs, which learner.device = {} has none of: choose tcp, or cards cuda:N",
            learner.device
        ),
    );
}

fn alarms<F: Fn(&str) -> String>(config: &RunConfig, checks: &mut Checks<F>) {
    let alarms = &config.alarms;
    within!(checks, alarms.grad_norm_max, 0.0..=1e12);
    within!(checks, alarms.kl_max, 0.0..=1e12);
    within!(checks, alarms.reward_std_min, 0.0..=0.5);
    within!(checks, alarms.watched_fall_max, 0.0..=1.0);
}

fn checkpoint<F: Fn(&str) -> String>(config: &RunConfig, checks: &mut Checks<F>) {
    let checkpoint = &config.checkpoint;
    checks.must(
        checkpoint.url.is_empty() || is_store_url(&checkpoint.url),
        "checkpoint.url",
        format!("{:?}", checkpoint.url),
        "is none of file:///FOLDER, s3://BUCKET/PREFIX and gs://BUCKET/PREFIX",
    );
    let (last, best) = (checkpoint.keep_last, checkpoint.keep_best);
    checks.within("checkpoint.keep_last", last, 0..=1_000_000);
    checks.within("checkpoint.keep_best", best, 0..=1_000_000);
    checks.must(
        best == 0 || last > 0,
        "checkpoint.keep_best",
        best,
        "says nothing while checkpoint.keep_last = 0 keeps all: set keep_last to 1 or more",
    );
}

/// A place in an object store, with a bucket or an absolute folder.
fn is_store_url(url: &str) -> bool {
    let plain = !url.contains(['?', '#']) && !url.contains(char::is_whitespace);
    let bucket = ["s3://", "gs://"]
        .iter()
        .find_map(|kind| url.strip_prefix(kind));
    let bucket = bucket.and_then(|rest| rest.split('/').next());
    let folder = url.strip_prefix("file:///");
    let is_bucket = bucket.is_some_and(|name| !name.is_empty() && !name.contains(['@', ':']));
    plain && (is_bucket || folder.is_some_and(|folder| !folder.trim_matches('/').is_empty()))
}

fn lora<F: Fn(&str) -> String>(config: &RunConfig, checks: &mut Checks<F>) {
    let lora = &config.lora.adapter;
    within!(checks, lora.rank, 1..=4096);
    within!(checks, lora.alpha, 1e-6..=1e6);
    let modules = &lora.target_modules;
    checks.must(
        !modules.is_empty(),
        "lora.target_modules",
        "[]",
        "adapts nothing",
    );
}

fn cluster<F: Fn(&str) -> String>(config: &RunConfig, checks: &mut Checks<F>) {
    let cluster = &config.cluster;
    within!(checks, cluster.rollout_workers, 0..=100_000);
    within!(checks, cluster.reward_workers, 0..=100_000);
    within!(checks, cluster.threads_per_worker, 0..=4096);
    within!(checks, cluster.heartbeat_ms, 10..=600_000);
    within!(checks, cluster.lease_s, 1..=7 * 86_400);
    within!(checks, cluster.attempts_max, 1..=1000);
    within!(checks, cluster.rank_grace_s, 0..=86_400);
    within!(checks, cluster.report_wait_ms_max, 0..=600_000);
    let address = cluster.listen.parse::<std::net::SocketAddr>().is_ok();
    checks.must(
        address,
        "cluster.listen",
        format!("{:?}", cluster.listen),
        "is not address:port",
    );
}

fn samples<F: Fn(&str) -> String>(config: &RunConfig, checks: &mut Checks<F>) {
    let samples = &config.samples;
    within!(checks, samples.every, 0..=1_000_000);
    within!(checks, samples.pairs, 1..=256);
    within!(checks, samples.keep_groups, 0..=1_000_000);
}

fn evaluation<F: Fn(&str) -> String>(config: &RunConfig, checks: &mut Checks<F>) {
    let evaluation = &config.evaluation;
    within!(checks, evaluation.pairs, 0..=1_000_000);
    within!(checks, evaluation.num_inference_steps, 1..=1000);
    within!(checks, evaluation.guidance_scale, 0.0..=100.0);
    within!(checks, evaluation.true_cfg_scale, 1.0..=100.0);
}

#[cfg(test)]
mod tests {
    use retouch_settings::DeviceName;

    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(RunConfig::default().validate(), Ok(()));
    }

    #[test]
    fn checkpoints_go_to_places_in_object_stores() {
        let problem = |url: &str| {
            let mut config = RunConfig::default();
            config.checkpoint.url = url.into();
            config.validate().err().map(|error| error.to_string())
        };
        for url in ["", "file:///mnt/runs/a", "s3://bucket", "gs://bucket/a/b"] {
            assert_eq!(problem(url), None, "{url}");
        }
        let others = [
            "file://runs/a",
            "file:///",
            "s3://",
            "s3:///a",
            "az://a/b",
            "runs/a",
            "s3://key:secret@a",
            "gs://a b",
        ];
        for url in others {
            let problem = problem(url).expect(url);
            assert!(
                problem.contains(&format!("checkpoint.url: {url:?} is none of")),
                "{problem}"
            );
        }
    }

    #[test]
    fn the_best_stay_beside_the_last() {
        let mut config = RunConfig::default();
        config.checkpoint.keep_best = 2;
        let error = config.validate().unwrap_err().to_string();
        assert!(
            error.contains("checkpoint.keep_best: 2 says nothing"),
            "{error}"
        );
        config.checkpoint.keep_last = 1;
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn a_term_may_be_watched_and_not_all_of_them() {
        let term = |name: &str, weight| RewardTerm {
            name: name.into(),
            weight,
            ..RewardTerm::default()
        };
        let problem = |weights: [f64; 2]| {
            let mut config = RunConfig::default();
            config.reward.terms = vec![term("edit", weights[0]), term("held-out", weights[1])];
            config.validate().err().map(|error| error.to_string())
        };
        assert_eq!(problem([1.0, 0.0]), None);
        assert_eq!(problem([-0.0, 0.5]), None);
        let alone = problem([0.0, 0.0]).expect("no reward");
        assert!(
            alone.contains("reward.terms: 0 is the weight of every term"),
            "{alone}"
        );
        for weight in [-1.0, f64::NAN, f64::INFINITY] {
            let wrong = problem([1.0, weight]).expect("no weight");
            let expected = format!("reward.terms[1].weight: {weight} is not a weight");
            assert!(wrong.contains(&expected), "{wrong}");
        }
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let mut config = RunConfig::default();
        config.rollout.group_size = 1;
        config.model.height = 100;
        config.learner.ranks = 3;
        config.learner.timestep_fraction = 0.1;
        config.learner.reference = Reference::Init;
        config.learner.collective = CollectiveKind::Nccl;
        config.learner.device = DeviceName::Cpu.into();
        config.filter.tau_mean = f64::NAN;
        config.reward.terms.clear();
        config.cluster.listen = "here".into();
        let errors = config.validate().unwrap_err();
        let keys: Vec<&str> = errors
            .problems()
            .iter()
            .map(|problem| problem.key.as_str())
            .collect();
        let expected = [
            "model.height",
            "rollout.group_size",
            "reward.terms",
            "filter.tau_mean",
            "learner.gradient_shards",
            "learner.reference",
            "learner.timestep_fraction",
            "learner.collective",
            "cluster.listen",
        ];
        assert_eq!(keys, expected);
        let text = errors.to_string();
        assert!(
            text.contains("rollout.group_size: 1 is not in 2..=256"),
            "{text}"
        );
        assert!(
            text.contains("learner.gradient_shards: 8 is not a multiple of learner.ranks = 3"),
            "{text}"
        );
    }
}
