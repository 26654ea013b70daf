//! One simulated run before it begins: everything follows from its seed.

use retouch_dataset::Row;
use retouch_proto::RunConfig;
use retouch_proto::config::{Preset, preset};

use super::faults::Faults;
use super::random::Random;

/// Configurations that runs differ in; runs of one variant end with the same adapter.
pub(super) const VARIANTS: u64 = 32;
/// Fakes that every run has at least.
pub const WORKERS_MIN: usize = 10;
/// Rows of the simulated dataset.
const ROWS: u64 = 12;

/// How many fakes of each role.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cast {
    pub(super) rollout: usize,
    pub(super) reward: usize,
    pub(super) learner: usize,
    /// Of all of these, so many are not there at the beginning.
    pub(super) late: usize,
}

/// A row whose tasks always fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Poison {
    pub(super) row: u32,
    /// Whether it is the judge that fails on it.
    pub(super) stage: Stage,
    pub(super) retryable: bool,
}

/// Where a poisoned row fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Rollout,
    Score,
}

/// What a run is made of.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) variant: u64,
    pub(super) config: RunConfig,
    pub(super) rows: Vec<Row>,
    pub(super) cast: Cast,
    pub(super) poison: Option<Poison>,
    pub(super) faults: Faults,
}

impl Scenario {
    /// A run with faults; every other seed has only those that cannot change its result.
    pub(super) fn of(seed: u64, workers: Option<usize>) -> Self {
        let mut random = Random::new(seed);
        let variant = random.within(0..VARIANTS);
        let faults = match seed % 2 {
            0 => Faults::some(&mut random),
            _ => Faults::harmless(&mut random),
        };
        let more = random.within(0..4) as usize;
        let cast = cast(workers.unwrap_or(WORKERS_MIN + more), &mut random);
        Self {
            seed,
            cast,
            faults,
            ..Self::undisturbed(variant)
        }
    }

    /// The run of a variant when nothing goes wrong.
    pub(super) fn undisturbed(variant: u64) -> Self {
        let config = config(variant);
        let cast = cast(WORKERS_MIN, &mut Random::new(variant));
        let poison = poison(variant);
        Self {
            seed: variant,
            variant,
            config,
            rows: rows(),
            cast: Cast { late: 0, ..cast },
            poison,
            faults: Faults::none(),
        }
    }
}

/// Half of them sample, a third judges, the others learn.
fn cast(workers: usize, random: &mut Random) -> Cast {
    let learner = 2 + random.within(0..2) as usize;
    let reward = (workers / 3).max(2);
    Cast {
        rollout: workers.saturating_sub(reward + learner).max(2),
        reward,
        learner,
        late: random.within(0..3) as usize,
    }
}

fn config(variant: u64) -> RunConfig {
    let mut config = preset(Preset::Tiny);
    config.seed = variant % 8;
    // Long enough for a policy that learned something to sample.
    let staleness = (variant / 5 % 5) as u32;
    config.rollout.staleness_max = staleness;
    config.iterations = 3 + (variant % 2) as u32 + staleness.div_ceil(2);
    config.rollout.groups_per_iteration = 4;
    config.rollout.group_size = 3;
    config.filter.refill_rounds_max = (variant % 2) as u32;
    config.filter.ban = !variant.is_multiple_of(3);
    config.reward.permute = variant.is_multiple_of(5);
    config.learner.ranks = 2;
    config.learner.checkpoint_every = 2 + (variant % 2) as u32;
    config.cluster.rollout_workers = 5;
    config.cluster.reward_workers = 3;
    config.cluster.heartbeat_ms = 1_000;
    config.cluster.lease_s = 6;
    config.cluster.attempts_max = 6;
    config.cluster.rank_grace_s = 5;
    config.cluster.report_wait_ms_max = 2_000;
    config.validate().expect("a valid configuration");
    config
}

fn poison(variant: u64) -> Option<Poison> {
    let stage = match variant % 4 {
        1 => Stage::Rollout,
        3 => Stage::Score,
        _ => return None,
    };
    Some(Poison {
        row: (variant % ROWS) as u32,
        stage,
        retryable: variant % 8 < 4,
    })
}

/// The simulated dataset.
pub(super) fn rows() -> Vec<Row> {
    let row = |index| Row {
        prompt: format!("prompt {index}"),
        images: vec![format!("images/{}.png", index % 5)],
        requirement: "r".into(),
        target: None,
    };
    (0..ROWS).map(row).collect()
}
