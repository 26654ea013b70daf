//! Which (sample, timestep) pairs are learned from, in which batches.
//!
//! The plan is a function of the run's seed, the iteration and its kept samples.
//! It knows nothing of ranks and threads, so that every packing gives the same
//! sums (A9).

use std::ops::Range;

use retouch_proto::seed::{self, Purpose};

use crate::shards::part;

/// What the plan depends on beside the groups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlanConfig {
    /// Shards into which the samples are divided.
    pub gradient_shards: usize,
    /// Most pairs in one batch.
    pub micro_batch_size: usize,
    /// Share of the sampler's timesteps that each sample is trained at.
    pub timestep_fraction: f64,
    /// How many timesteps the sampler has.
    pub timesteps: usize,
}

/// A sample of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sample {
    /// Position of the group in the iteration's list.
    pub group: usize,
    /// Position of the sample in its group.
    pub index: usize,
}

/// A sample at one of its training timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The sample.
    pub sample: Sample,
    /// Which of the sample's draws this is, from 0; its noise is derived from it.
    pub draw: usize,
    /// Index of the timestep in the sampler's schedule.
    pub timestep: usize,
}

/// Pairs of one group that share a forward pass.
pub type MicroBatch = Vec<Pair>;

/// How many of `timesteps` a sample is trained at.
pub fn training_timesteps(timesteps: usize, fraction: f64) -> usize {
    (timesteps as f64 * fraction).floor() as usize
}

/// The batches of one shard, in order.
///
/// `group_sizes` are the numbers of kept samples, in group order.
pub fn shard_batches(
    config: &PlanConfig,
    shard: usize,
    group_sizes: &[usize],
    draws: &Draws<'_>,
) -> Vec<MicroBatch> {
    let samples = samples(group_sizes);
    let mine = &samples[part(samples.len(), shard, config.gradient_shards)];
    mine.chunk_by(|a, b| a.group == b.group)
        .flat_map(|run| run_batches(config, run, draws))
        .collect()
}

/// All samples in (group, sample) order.
fn samples(group_sizes: &[usize]) -> Vec<Sample> {
    let groups = group_sizes.iter().enumerate();
    groups
        .flat_map(|(group, &size)| (0..size).map(move |index| Sample { group, index }))
        .collect()
}

/// The pairs of samples of one group, timestep by timestep, in parts of nearly one size.
fn run_batches(config: &PlanConfig, run: &[Sample], draws: &Draws<'_>) -> Vec<MicroBatch> {
    let timesteps: Vec<Vec<usize>> = run.iter().map(|s| draws.timesteps(config, *s)).collect();
    let count = training_timesteps(config.timesteps, config.timestep_fraction);
    let pairs: Vec<Pair> = (0..count)
        .flat_map(|draw| {
            run.iter().zip(&timesteps).map(move |(&sample, own)| Pair {
                sample,
                draw,
                timestep: own[draw],
            })
        })
        .collect();
    let parts = pairs.len().div_ceil(config.micro_batch_size.max(1));
    (0..parts)
        .map(|i| pairs[part(pairs.len(), i, parts)].to_vec())
        .collect()
}

/// Derives what is random about a sample.
#[derive(Clone, Copy, Debug)]
pub struct Draws<'a> {
    /// The run's seed.
    pub run_seed: u64,
    /// The iteration's number.
    pub iteration: u32,
    /// Every group's own number, by position.
    pub group_numbers: &'a [u32],
}

impl Draws<'_> {
    /// The sample's training timesteps: the first of a permutation of all.
    fn timesteps(&self, config: &PlanConfig, sample: Sample) -> Vec<usize> {
        let seed = self.seed(Purpose::TrainTimesteps, sample, 0);
        let mut order = seed::permutation(seed, config.timesteps);
        order.truncate(training_timesteps(
            config.timesteps,
            config.timestep_fraction,
        ));
        order
    }

    /// The seed of the noise of one pair.
    pub fn noise_seed(&self, pair: &Pair) -> u64 {
        self.seed(Purpose::TrainNoise, pair.sample, pair.draw as u32)
    }

    fn seed(&self, purpose: Purpose, sample: Sample, step: u32) -> u64 {
        let group = self.group_numbers[sample.group];
        seed::derive(
            self.run_seed,
            purpose,
            self.iteration,
            group,
            sample.index as u32,
            step,
        )
    }
}

/// The groups that a rank needs for its shards, by position.
pub fn needed_groups(
    gradient_shards: usize,
    shards: Range<usize>,
    group_sizes: &[usize],
) -> Vec<usize> {
    let samples = samples(group_sizes);
    let first = part(samples.len(), shards.start, gradient_shards).start;
    let last = part(samples.len(), shards.end, gradient_shards).start;
    let mut groups: Vec<usize> = samples[first..last].iter().map(|s| s.group).collect();
    groups.dedup();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: PlanConfig = PlanConfig {
        gradient_shards: 8,
        micro_batch_size: 12,
        timestep_fraction: 0.99,
        timesteps: 6,
    };
    const DRAWS: Draws<'_> = Draws {
        run_seed: 1,
        iteration: 3,
        group_numbers: &[0, 2, 5, 6, 9, 11],
    };

    fn all_pairs(config: &PlanConfig, sizes: &[usize]) -> Vec<Pair> {
        let shards = 0..config.gradient_shards;
        shards
            .flat_map(|s| shard_batches(config, s, sizes, &DRAWS))
            .flatten()
            .collect()
    }

    #[test]
    fn every_sample_is_trained_at_five_different_timesteps_of_six() {
        let pairs = all_pairs(&CONFIG, &[12; 6]);
        assert_eq!(pairs.len(), 12 * 6 * 5);
        for sample in samples(&[12; 6]) {
            let mut own: Vec<usize> = pairs
                .iter()
                .filter(|p| p.sample == sample)
                .map(|p| p.timestep)
                .collect();
            own.sort_unstable();
            own.dedup();
            assert_eq!(own.len(), 5, "{sample:?}");
        }
    }

    #[test]
    fn batches_hold_one_group_and_no_more_than_allowed() {
        for shard in 0..8 {
            for batch in shard_batches(&CONFIG, shard, &[12, 7, 12, 1, 12], &DRAWS) {
                assert!((1..=12).contains(&batch.len()));
                assert!(
                    batch
                        .iter()
                        .all(|p| p.sample.group == batch[0].sample.group)
                );
            }
        }
    }

    #[test]
    fn a_samples_draws_do_not_depend_on_its_neighbours() {
        let of = |pairs: Vec<Pair>| -> Vec<(usize, usize, u64)> {
            let mut mine: Vec<_> = pairs
                .iter()
                .filter(|p| p.sample == Sample { group: 1, index: 3 })
                .map(|p| (p.draw, p.timestep, DRAWS.noise_seed(p)))
                .collect();
            mine.sort_unstable();
            mine
        };
        let other = PlanConfig {
            gradient_shards: 2,
            micro_batch_size: 5,
            ..CONFIG
        };
        assert_eq!(
            of(all_pairs(&CONFIG, &[12; 6])),
            of(all_pairs(&other, &[4, 12]))
        );
    }

    #[test]
    fn ranks_need_the_groups_of_their_shards() {
        assert_eq!(needed_groups(8, 0..4, &[12; 6]), [0, 1, 2]);
        assert_eq!(needed_groups(8, 1..2, &[12; 6]), [0, 1]);
        assert!(needed_groups(8, 0..8, &[]).is_empty());
    }
}
