//! A9: all randomness is derived by counter, so that whoever redoes a task gets the same sample.

/// What a stream of random numbers is for; each purpose has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// The order in which the dataset's rows are drawn, one permutation per pass.
    PromptOrder,
    /// The order in which an iteration's replacements for groups that were left out are drawn.
    Replacements,
    /// The initial noise of a candidate.
    RolloutNoise,
    /// The noise that forward-noises x0 in training.
    TrainNoise,
    /// Which of the sampler's timesteps a sample is trained on.
    TrainTimesteps,
    /// The first values of the adapter.
    LoraInit,
    /// The control run's permutation of a group's rewards.
    RewardPermutation,
    /// The initial noise of evaluation.
    EvaluationNoise,
    /// Everything about supervised fine-tuning's batches.
    Sft,
    /// The dataset generator.
    Dataset,
    /// Resampling for confidence intervals.
    Bootstrap,
}

impl Purpose {
    /// The name that is hashed: never change one, or old runs can't be replayed.
    fn tag(self) -> &'static str {
        match self {
            Self::PromptOrder => "prompt-order",
            Self::Replacements => "replacements",
            Self::RolloutNoise => "rollout-noise",
            Self::TrainNoise => "train-noise",
            Self::TrainTimesteps => "train-timesteps",
            Self::LoraInit => "lora-init",
            Self::RewardPermutation => "reward-permutation",
            Self::EvaluationNoise => "evaluation-noise",
            Self::Sft => "sft",
            Self::Dataset => "dataset",
            Self::Bootstrap => "bootstrap",
        }
    }
}

/// The seed for one purpose at one place of the run. Counters that a purpose has no use for are 0.
pub fn derive(
    run_seed: u64,
    purpose: Purpose,
    iteration: u32,
    group: u32,
    sample: u32,
    step: u32,
) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("retouch v1 seed");
    hasher.update(&run_seed.to_le_bytes());
    for counter in [iteration, group, sample, step] {
        hasher.update(&counter.to_le_bytes());
    }
    hasher.update(purpose.tag().as_bytes());
    let hash = hasher.finalize();
    let (first, _) = hash.as_bytes().split_at(8);
    u64::from_le_bytes(first.try_into().expect("eight bytes"))
}

/// A seeded permutation of `0..len`, the same on every machine (Fisher-Yates, step = draw).
pub fn permutation(seed: u64, len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    let mut stream = blake3::Hasher::new_derive_key("retouch v1 permutation")
        .update(&seed.to_le_bytes())
        .finalize_xof();
    for last in (1..len).rev() {
        order.swap(last, below(&mut stream, last as u64 + 1) as usize);
    }
    order
}

/// A number in `0..bound` without bias: values of the incomplete last stretch are drawn again.
fn below(stream: &mut blake3::OutputReader, bound: u64) -> u64 {
    let rejected_from = u64::MAX - (u64::MAX % bound + 1) % bound;
    loop {
        let mut bytes = [0; 8];
        stream.fill(&mut bytes);
        let value = u64::from_le_bytes(bytes);
        if value <= rejected_from {
            return value % bound;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_counter_and_purpose_matters() {
        let seeds: BTreeSet<u64> = [
            derive(1, Purpose::RolloutNoise, 0, 0, 0, 0),
            derive(2, Purpose::RolloutNoise, 0, 0, 0, 0),
            derive(1, Purpose::TrainNoise, 0, 0, 0, 0),
            derive(1, Purpose::RolloutNoise, 1, 0, 0, 0),
            derive(1, Purpose::RolloutNoise, 0, 1, 0, 0),
            derive(1, Purpose::RolloutNoise, 0, 0, 1, 0),
            derive(1, Purpose::RolloutNoise, 0, 0, 0, 1),
        ]
        .into();
        assert_eq!(seeds.len(), 7);
    }

    /// Guards replay of old runs: these numbers may never change.
    #[test]
    fn seeds_are_stable() {
        assert_eq!(
            derive(7, Purpose::PromptOrder, 1, 2, 3, 4),
            5090537084842469891
        );
        assert_eq!(permutation(7, 8), [0, 6, 5, 1, 4, 7, 2, 3]);
    }

    #[test]
    fn permutations_are_permutations_and_cover_all_orders() {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let order = permutation(seed, 4);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
            seen.insert(order);
        }
        assert_eq!(seen.len(), 24);
        assert!(permutation(1, 0).is_empty());
    }
}
