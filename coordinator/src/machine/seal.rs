//! The seal: from the scores of an iteration's groups to what is trained on.

use retouch_proto::config::RewardTerm;
use retouch_proto::seed::{self, Purpose};
use retouch_proto::status::{EventKind, IterationMetrics};
use retouch_proto::task::SampleScore;
use retouch_proto::{GroupId, Iteration};

use super::Machine;
use super::groups::{Group, GroupState, OpenIteration, Sealed};
use super::record::KeptGroup;
use crate::metrics::{describe_rewards, ratio, term_means};
use crate::{advantage, filter};

impl Machine {
    /// All groups are through: filters, and computes advantages over everything that has scores.
    pub(super) fn seal(&mut self, iteration: Iteration) {
        let open = self.open.get(iteration).expect("opened by the caller");
        let groups = open.groups().iter();
        let scored: Vec<&Group> = groups.filter(|group| group.rewards().is_some()).collect();
        // An iteration without a lesson is fine, one in which every group failed is not: so would the next one's.
        if scored.is_empty() {
            return self.fail(no_scores(open));
        }
        let rewards: Vec<Vec<f64>> = scored.iter().filter_map(|group| group.rewards()).collect();
        let keep = filter::keep(&rewards, &self.config.filter);
        let kept = self.kept(&scored, &rewards, &keep);
        let solved = self.solved(&scored, &rewards);
        let mut metrics = self.metrics(open, &scored, &rewards);
        metrics.kept = kept.len() as u32;
        metrics.filtered = metrics.scored - metrics.kept;
        metrics.filter_rate = ratio(metrics.filtered as usize, scored.len());
        metrics.samples_trained = metrics.kept * self.config.rollout.group_size;
        let message = sealed_message(&metrics);
        let sealed = Sealed {
            sealed_ms: self.timers.now_ms(),
            kept,
            solved,
            metrics,
        };
        let open = self.open.get_mut(iteration).expect("looked up above");
        open.sealed = Some(sealed);
        self.event(EventKind::IterationSealed, message);
        self.moved();
    }

    /// What follows from the scored groups alone.
    fn metrics(
        &self,
        open: &OpenIteration,
        scored: &[&Group],
        rewards: &[Vec<f64>],
    ) -> IterationMetrics {
        let mut metrics = IterationMetrics {
            iteration: open.iteration,
            groups: open.counts().total,
            scored: scored.len() as u32,
            dropped: open.counts().dropped,
            refill_rounds: open.rounds(),
            entropy_mean: entropy_mean(scored, &self.config.reward.terms),
            reward_terms: term_means(sample_scores(scored)),
            ..IterationMetrics::default()
        };
        describe_rewards(rewards, &mut metrics);
        metrics.stage_s.collect = (self.timers.now_ms() - open.opened_ms) as f64 / 1e3;
        let timings = scored
            .iter()
            .filter_map(|group| group.sampled.as_ref())
            .map(|sampled| sampled.timings);
        metrics.stage_s.rollout = timings.map(|t| t.encode_s + t.sample_s + t.decode_s).sum();
        let scores = scored.iter().filter_map(|group| group.scored.as_ref());
        metrics.stage_s.score = scores.map(|scored| scored.scoring_s).sum();
        metrics
    }

    /// Advantages over all scored groups, then the kept ones'.
    fn kept(&self, scored: &[&Group], rewards: &[Vec<f64>], keep: &[bool]) -> Vec<KeptGroup> {
        let ids: Vec<GroupId> = scored.iter().map(|group| group.drawn.group).collect();
        let permutations: Vec<Option<Vec<usize>>> = ids
            .iter()
            .zip(rewards)
            .map(|(id, rewards)| self.permutation(*id, rewards.len()))
            .collect();
        let given: Vec<Vec<f64>> = rewards.iter().zip(&permutations).map(permuted).collect();
        let advantages = advantage::advantages(&given, self.config.advantage.std);
        let all = ids.into_iter().zip(advantages).zip(permutations).zip(keep);
        let kept = all
            .filter(|(_, keep)| **keep)
            .map(|(((group, advantages), permutation), _)| KeptGroup {
                group,
                advantages,
                permutation,
            });
        kept.collect()
    }

    /// The control run permutes a group's rewards among its candidates.
    fn permutation(&self, group: GroupId, len: usize) -> Option<Vec<usize>> {
        let iteration = group.iteration.0;
        let purpose = Purpose::RewardPermutation;
        let seed = seed::derive(self.config.seed, purpose, iteration, group.index, 0, 0);
        self.config
            .reward
            .permute
            .then(|| seed::permutation(seed, len))
    }

    fn solved(&self, scored: &[&Group], rewards: &[Vec<f64>]) -> Vec<u32> {
        if !self.config.filter.ban {
            return Vec::new();
        }
        let groups = scored.iter().zip(rewards);
        let solved = groups.filter(|(_, rewards)| filter::is_solved(rewards, &self.config.filter));
        solved.map(|(group, _)| group.drawn.row).collect()
    }

    /// A group of the iteration changed: what was concluded from all of them is void.
    pub(super) fn unseal(&mut self, iteration: Iteration) {
        let Some(open) = self.open.get_mut(iteration) else {
            return;
        };
        let was_sealed = open.sealed.take().is_some();
        let training = self.learning.training();
        // Its ranks train on groups that no longer are what the seal says.
        if was_sealed && training.is_some_and(|training| training.iteration == iteration) {
            self.abort_training();
        }
    }
}

fn permuted((rewards, permutation): (&Vec<f64>, &Option<Vec<usize>>)) -> Vec<f64> {
    match permutation {
        Some(permutation) => permutation.iter().map(|from| rewards[*from]).collect(),
        None => rewards.clone(),
    }
}

fn sample_scores<'a>(scored: &[&'a Group]) -> impl Iterator<Item = &'a SampleScore> + Clone {
    scored
        .iter()
        .filter_map(|group| group.scored.as_ref())
        .flat_map(|scored| &scored.scores)
}

/// Of the judges that the reward is made of: one that is only watched says nothing about it.
fn entropy_mean(scored: &[&Group], terms: &[RewardTerm]) -> f64 {
    let watched: Vec<&str> = terms
        .iter()
        .filter(|term| term.is_watched())
        .map(|term| term.name.as_str())
        .collect();
    let entropies = sample_scores(scored)
        .flat_map(|score| &score.terms)
        .filter(|term| !watched.contains(&term.name.as_str()))
        .map(|term| term.entropy);
    advantage::Moments::of(entropies).mean
}

fn no_scores(open: &OpenIteration) -> String {
    let reasons = open
        .groups()
        .iter()
        .rev()
        .filter_map(|group| match group.state() {
            GroupState::Dropped(reason) => Some(reason.as_str()),
            _ => None,
        });
    let last = reasons.take(1).collect::<String>();
    let (iteration, dropped) = (open.iteration, open.counts().dropped);
    format!("all {dropped} groups of iteration {iteration} failed; the last reason: {last}")
}

fn sealed_message(metrics: &IterationMetrics) -> String {
    let IterationMetrics {
        iteration,
        kept,
        groups,
        reward_mean,
        ..
    } = metrics;
    format!(
        "iteration {iteration} sealed: {kept} of {groups} groups kept, mean reward {reward_mean:.4}"
    )
}
