//! What asynchrony gains: the same work with `staleness_max` = 0, 1, 2, ... on the same workers.

use std::fmt;

use retouch_proto::RunConfig;
use retouch_proto::config::{FilterRule, Preset, preset};

use super::fleet::{Crew, Durations, Fleet, Totals};

/// Iterations that are simulated; the first ones of a pipeline fill it.
const ITERATIONS: u32 = 40;

/// A cluster, its work, and how long the work takes.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// The workers.
    pub crew: Crew,
    /// Groups of an iteration.
    pub groups: u32,
    /// Workers' seconds in the rollouts of an iteration, summed.
    pub rollout_s: f64,
    /// Workers' seconds in scoring an iteration, summed.
    pub score_s: f64,
    /// Seconds of a training step.
    pub train_s: f64,
    /// A task takes up to this share longer or shorter.
    pub jitter: f64,
}

/// One schedule in numbers.
#[derive(Clone, Debug)]
pub struct Measured {
    /// How far samples are behind.
    pub staleness_max: u32,
    /// Seconds per iteration.
    pub iteration_s: f64,
    /// Share of the time that rollout workers, reward workers and learners were at work.
    pub utilisation: [f64; 3],
    /// Mean number of iterations between the policy that sampled a group and the one that learned.
    pub staleness_mean: f64,
}

impl Schedule {
    /// Simulates the schedule with this bound.
    pub fn measure(&self, staleness_max: u32) -> Measured {
        let config = self.config(staleness_max);
        let no_clock = || 0;
        let mut fleet = Fleet::new(config, 4_096, self.durations(), &no_clock);
        fleet.join(self.crew);
        let totals = fleet.run(ITERATIONS).clone();
        self.measured(staleness_max, &totals)
    }

    fn durations(&self) -> Durations {
        let per_group_ms = |seconds: f64| (1e3 * seconds / f64::from(self.groups)) as u64;
        Durations {
            rollout_ms: per_group_ms(self.rollout_s),
            score_ms: per_group_ms(self.score_s),
            train_ms: (1e3 * self.train_s) as u64,
            jitter: self.jitter,
        }
    }

    fn config(&self, staleness_max: u32) -> RunConfig {
        let mut config = preset(Preset::Tiny);
        config.iterations = ITERATIONS;
        config.rollout.groups_per_iteration = self.groups;
        config.rollout.staleness_max = staleness_max;
        config.filter.rule = FilterRule::None;
        config.filter.ban = false;
        config.learner.ranks = self.crew.learner as u32;
        config.learner.checkpoint_every = ITERATIONS;
        config.cluster.heartbeat_ms = 600_000;
        config.cluster.lease_s = 86_400;
        config
    }

    fn measured(&self, staleness_max: u32, totals: &Totals) -> Measured {
        let Crew {
            rollout,
            reward,
            learner,
        } = self.crew;
        let workers = [rollout, reward, learner];
        let whole_ms = totals.virtual_ms as f64;
        let share = |role: usize| totals.busy_ms[role] as f64 / (whole_ms * workers[role] as f64);
        Measured {
            staleness_max,
            iteration_s: whole_ms / 1e3 / f64::from(totals.iterations),
            utilisation: [share(0), share(1), share(2)],
            staleness_mean: totals.staleness as f64 / totals.trained.max(1) as f64,
        }
    }
}

/// Schedules side by side.
pub struct Table(pub Vec<Measured>);

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "staleness_max  s/iteration  speed-up  rollout  reward  learner  mean staleness"
        )?;
        let first_s = self.0.first().map_or(0.0, |first| first.iteration_s);
        for row in &self.0 {
            let [rollout, reward, learner] = row.utilisation.map(|share| 100.0 * share);
            writeln!(
                f,
                "{:>13}  {:>11.2}  {:>7.2}x  {rollout:>6.0}%  {reward:>5.0}%  {learner:>6.0}%  {:>14.2}",
                row.staleness_max,
                row.iteration_s,
                first_s / row.iteration_s,
                row.staleness_mean,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_hides_the_training_behind_the_rollouts() {
        let schedule = Schedule {
            crew: Crew {
                rollout: 4,
                reward: 2,
                learner: 1,
            },
            groups: 16,
            rollout_s: 40.0,
            score_s: 8.0,
            train_s: 6.0,
            jitter: 0.2,
        };
        let synchronous = schedule.measure(0);
        let overlapped = schedule.measure(1);
        // 10 s of rollouts, a tail of scoring, 6 s of training: one after the other, or at once.
        assert!(synchronous.iteration_s > 16.0, "{synchronous:?}");
        assert!(overlapped.iteration_s < 12.0, "{overlapped:?}");
        assert!(overlapped.utilisation[0] > 0.9, "{overlapped:?}");
        assert_eq!(synchronous.staleness_mean, 0.0);
        assert!(overlapped.staleness_mean <= 1.0 && overlapped.staleness_mean > 0.9);
    }
}
