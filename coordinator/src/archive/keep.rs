//! Which checkpoints stay.

use std::collections::BTreeSet;

use retouch_proto::Iteration;
use retouch_proto::config::CheckpointConfig;

/// The last ones, and the best ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keep {
    /// How many of the last; 0 keeps all.
    pub last: usize,
    /// How many of those with the highest mean reward, beside the last ones.
    pub best: usize,
}

/// A checkpoint as far as keeping it is concerned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Saved {
    /// Which one.
    pub iteration: Iteration,
    /// The judge's mean reward of the samples that its policy made; absent while there are none.
    pub reward_mean: Option<f64>,
}

impl Keep {
    /// What the run file says.
    pub(crate) fn of(config: &CheckpointConfig) -> Self {
        Self {
            last: config.keep_last as usize,
            best: config.keep_best as usize,
        }
    }

    /// Those that may go. The newest one always stays: a run that is to go on needs it.
    pub(crate) fn dropped(&self, saved: &[Saved]) -> BTreeSet<Iteration> {
        if self.last == 0 {
            return BTreeSet::new();
        }
        let mut by_age: Vec<&Saved> = saved.iter().collect();
        by_age.sort_by_key(|saved| std::cmp::Reverse(saved.iteration));
        let mut older = by_age.split_off(self.last.min(by_age.len()));
        let reward = |saved: &Saved| saved.reward_mean.filter(|mean| mean.is_finite());
        // The newer of two equals is the better one: it was trained for longer.
        older.sort_by(|a, b| {
            reward(b)
                .unwrap_or(f64::MIN)
                .total_cmp(&reward(a).unwrap_or(f64::MIN))
        });
        older
            .iter()
            .skip(self.best)
            .map(|saved| saved.iteration)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(last: usize, best: usize) -> Vec<u32> {
        let rewards = [
            Some(0.2),
            Some(0.9),
            Some(f64::NAN),
            Some(0.9),
            Some(0.1),
            None,
        ];
        let saved = |(index, reward_mean): (usize, Option<f64>)| Saved {
            iteration: Iteration(index as u32 + 1),
            reward_mean,
        };
        let saved: Vec<Saved> = rewards.into_iter().enumerate().map(saved).collect();
        let dropped = Keep { last, best }.dropped(&saved);
        dropped.into_iter().map(|iteration| iteration.0).collect()
    }

    #[test]
    fn the_last_and_the_best_stay() {
        assert_eq!(dropped(0, 0), [0; 0], "all are kept");
        assert_eq!(dropped(2, 0), [1, 2, 3, 4]);
        assert_eq!(dropped(1, 1), [1, 2, 3, 5], "4 equals 2 and is newer");
        assert_eq!(dropped(1, 2), [1, 3, 5]);
        assert_eq!(dropped(1, 4), [3], "what has no number is the worst");
        assert_eq!(dropped(9, 9), [0; 0]);
    }
}
