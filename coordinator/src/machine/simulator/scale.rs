//! What an event costs on clusters of any size.

use retouch_proto::RunConfig;
use retouch_proto::config::{FilterRule, Preset, preset};

use super::fleet::{Crew, Durations, Fleet, Totals};

/// A run on so many workers, half of which sample.
pub struct Scale {
    /// Workers, one learner besides.
    pub workers: usize,
    /// Groups of the whole run.
    pub groups: u32,
    /// Groups of an iteration.
    pub groups_per_iteration: u32,
}

impl Scale {
    /// Runs it; `clock_ns` measures what the machine costs, `joined` is called when all workers
    /// are there and nothing has happened yet.
    pub fn run(&self, clock_ns: &dyn Fn() -> u64, joined: impl FnOnce()) -> Totals {
        let durations = Durations {
            rollout_ms: 20_000,
            score_ms: 20_000,
            train_ms: 5_000,
            jitter: 0.5,
        };
        let mut fleet = Fleet::new(self.config(), 10_000, durations, clock_ns);
        fleet.join(Crew {
            rollout: self.workers / 2,
            reward: self.workers / 2,
            learner: 1,
        });
        joined();
        fleet.run(u32::MAX).clone()
    }

    fn config(&self) -> RunConfig {
        let mut config = preset(Preset::Tiny);
        config.iterations = self.groups.div_ceil(self.groups_per_iteration);
        config.rollout.groups_per_iteration = self.groups_per_iteration;
        config.rollout.group_size = 12;
        config.rollout.staleness_max = 1;
        config.filter.rule = FilterRule::None;
        config.filter.ban = false;
        config.learner.ranks = 1;
        config.learner.checkpoint_every = config.iterations;
        config.cluster.heartbeat_ms = 5_000;
        config
    }
}
