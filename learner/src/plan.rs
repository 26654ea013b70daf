//! Which (sample, timestep) pairs are learned from, in which batches.
//!
//! The plan is a function of the run's seed, the iteration and its kept samples.
//! It knows nothing of ranks and threads, so that every packing gives the same
//! sums (A9).

use std::collections::BTreeSet;
use std::ops::Range;

use retouch_proto::Iteration;
use retouch_proto::seed::{self, Purpose};

use crate::shards::part;

/// What an iteration's pairs and batches depend on.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The run's seed.
    pub run_seed: u64,
    /// The iteration's number.
    pub iteration: Iteration,
    /// The kept groups, in order.
    pub groups: Vec<PlannedGroup>,
    /// Samples that the iteration is made without.
    pub excluded: BTreeSet<Sample>,
    /// Shards into which the samples are divided.
    pub gradient_shards: usize,
    /// Most pairs in one batch.
    pub micro_batch_size: usize,
    /// How many timesteps the sampler has.
    pub num_inference_steps: usize,
    /// Share of them that each sample is trained at.
    pub timestep_fraction: f64,
}

/// A group as far as a plan is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedGroup {
    /// The group's own number in the iteration, from which its random numbers are derived.
    pub index: u32,
    /// Its samples.
    pub samples: usize,
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

impl Plan {
    /// The batches of one shard, in order.
    pub fn shard_batches(&self, shard: usize) -> Vec<MicroBatch> {
        let sizes: Vec<usize> = self.groups.iter().map(|group| group.samples).collect();
        let samples = samples(&sizes);
        let mine = &samples[part(samples.len(), shard, self.gradient_shards)];
        let runs = mine.chunk_by(|a, b| a.group == b.group);
        let mut batches: Vec<MicroBatch> = runs.flat_map(|run| self.run_batches(run)).collect();
        // Left out only here, so that all other pairs keep the batch that they had.
        for batch in &mut batches {
            batch.retain(|pair| !self.excluded.contains(&pair.sample));
        }
        batches.retain(|batch| !batch.is_empty());
        batches
    }

    /// How many samples are learned from.
    pub fn samples(&self) -> usize {
        self.all_samples() - self.excluded.len()
    }

    /// How many samples there are, with those left out.
    pub fn all_samples(&self) -> usize {
        self.groups.iter().map(|group| group.samples).sum()
    }

    /// How many (sample, timestep) pairs are learned from.
    pub fn pairs(&self) -> usize {
        self.samples() * self.timesteps_per_sample()
    }

    /// The seed of the noise of one pair.
    pub fn noise_seed(&self, pair: &Pair) -> u64 {
        self.seed(Purpose::TrainNoise, pair.sample, pair.draw as u32)
    }

    /// The pairs of samples of one group, timestep by timestep, in parts of nearly one size.
    fn run_batches(&self, run: &[Sample]) -> Vec<MicroBatch> {
        let timesteps: Vec<Vec<usize>> = run.iter().map(|s| self.timesteps(*s)).collect();
        let pairs: Vec<Pair> = (0..self.timesteps_per_sample())
            .flat_map(|draw| {
                run.iter().zip(&timesteps).map(move |(&sample, own)| Pair {
                    sample,
                    draw,
                    timestep: own[draw],
                })
            })
            .collect();
        let parts = pairs.len().div_ceil(self.micro_batch_size.max(1));
        (0..parts)
            .map(|i| pairs[part(pairs.len(), i, parts)].to_vec())
            .collect()
    }

    fn timesteps_per_sample(&self) -> usize {
        (self.num_inference_steps as f64 * self.timestep_fraction).floor() as usize
    }

    /// The sample's training timesteps: the first of a permutation of all.
    fn timesteps(&self, sample: Sample) -> Vec<usize> {
        let seed = self.seed(Purpose::TrainTimesteps, sample, 0);
        let mut order = seed::permutation(seed, self.num_inference_steps);
        order.truncate(self.timesteps_per_sample());
        order
    }

    fn seed(&self, purpose: Purpose, sample: Sample, step: u32) -> u64 {
        // The group's own number, not its position: what other groups the filter kept has no influence.
        let group = self.groups[sample.group].index;
        seed::derive(
            self.run_seed,
            purpose,
            self.iteration.0,
            group,
            sample.index as u32,
            step,
        )
    }
}

/// All samples in (group, sample) order.
fn samples(group_sizes: &[usize]) -> Vec<Sample> {
    let groups = group_sizes.iter().enumerate();
    groups
        .flat_map(|(group, &size)| (0..size).map(move |index| Sample { group, index }))
        .collect()
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

    fn plan(sizes: &[usize]) -> Plan {
        let groups = [0, 2, 5, 6, 9, 11].into_iter().zip(sizes);
        Plan {
            run_seed: 1,
            iteration: Iteration(3),
            groups: groups
                .map(|(index, &samples)| PlannedGroup { index, samples })
                .collect(),
            excluded: BTreeSet::new(),
            gradient_shards: 8,
            micro_batch_size: 12,
            num_inference_steps: 6,
            timestep_fraction: 0.99,
        }
    }

    fn all_pairs(plan: &Plan) -> Vec<Pair> {
        let shards = 0..plan.gradient_shards;
        shards
            .flat_map(|s| plan.shard_batches(s))
            .flatten()
            .collect()
    }

    #[test]
    fn every_sample_is_trained_at_five_different_timesteps_of_six() {
        let plan = plan(&[12; 6]);
        let pairs = all_pairs(&plan);
        assert_eq!((pairs.len(), plan.pairs()), (12 * 6 * 5, 12 * 6 * 5));
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
        let plan = plan(&[12, 7, 12, 1, 12]);
        for batch in (0..8).flat_map(|shard| plan.shard_batches(shard)) {
            let group = batch[0].sample.group;
            assert!((1..=12).contains(&batch.len()));
            assert!(batch.iter().all(|p| p.sample.group == group));
        }
    }

    #[test]
    fn a_samples_draws_do_not_depend_on_its_neighbours() {
        let of = |plan: &Plan| -> Vec<(usize, usize, u64)> {
            let mut mine: Vec<_> = all_pairs(plan)
                .iter()
                .filter(|p| p.sample == Sample { group: 1, index: 3 })
                .map(|p| (p.draw, p.timestep, plan.noise_seed(p)))
                .collect();
            mine.sort_unstable();
            mine
        };
        let other = Plan {
            gradient_shards: 2,
            micro_batch_size: 5,
            ..plan(&[4, 12])
        };
        assert_eq!(of(&plan(&[12; 6])), of(&other));
    }

    #[test]
    fn a_sample_that_is_left_out_moves_no_other() {
        let whole = plan(&[12; 6]);
        let left_out = Sample { group: 2, index: 7 };
        let mut without = whole.clone();
        without.excluded.insert(left_out);
        assert_eq!((without.samples(), without.pairs()), (71, 355));
        for shard in 0..8 {
            let mut batches = whole.shard_batches(shard);
            for batch in &mut batches {
                batch.retain(|pair| pair.sample != left_out);
            }
            batches.retain(|batch| !batch.is_empty());
            assert_eq!(without.shard_batches(shard), batches);
        }
    }

    #[test]
    fn ranks_need_the_groups_of_their_shards() {
        assert_eq!(needed_groups(8, 0..4, &[12; 6]), [0, 1, 2]);
        assert_eq!(needed_groups(8, 1..2, &[12; 6]), [0, 1]);
        assert!(needed_groups(8, 0..8, &[]).is_empty());
    }
}
