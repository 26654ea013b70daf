//! Iterations from their first draw to their seal.

use retouch_proto::seed::{self, Purpose};
use retouch_proto::status::{EventKind, IterationMetrics};
use retouch_proto::worker::Role;
use retouch_proto::{GroupId, Iteration};

use super::Machine;
use super::control::Phase;
use super::groups::{Group, GroupState, OpenIteration, Sealed};
use super::record::{Entry, KeptGroup};
use crate::metrics::{describe_rewards, ratio};
use crate::{advantage, filter};

impl Machine {
    pub(super) fn collect(&mut self) {
        if !matches!(self.phase, Phase::Running | Phase::Draining { .. }) {
            return;
        }
        self.open_iterations();
        let ready = |open: &OpenIteration| open.sealed.is_none() && open.is_collected();
        let collected: Vec<Iteration> = self
            .open
            .values()
            .filter(|open| ready(open))
            .map(|open| open.iteration)
            .collect();
        for iteration in collected {
            if !self.refill(iteration) {
                self.seal(iteration);
            }
        }
    }

    /// Opens the iteration after the last committed one, and as many more as samples may be stale.
    fn open_iterations(&mut self) {
        let next = self.committed.iteration.next();
        let last = match self.phase {
            Phase::Draining { last } => last.0,
            _ => self.config.iterations,
        };
        for iteration in (next.0..=next.0 + self.config.rollout.staleness_max).map(Iteration) {
            let wanted = iteration.0 <= last && !self.open.contains_key(&iteration);
            if wanted && !self.open_iteration(iteration) {
                return;
            }
        }
    }

    fn open_iteration(&mut self, iteration: Iteration) -> bool {
        let position = self.prompts.position();
        let Some(first) = self.prompts.draw(self.banned_until(iteration)) else {
            self.prompts.go_to(position);
            self.stop_for_want_of_pairs();
            return false;
        };
        self.positions.insert(iteration, position);
        self.record(Entry::Opened {
            iteration,
            position,
        });
        self.open
            .insert(iteration, OpenIteration::new(iteration, self.now_ms));
        self.add_group(iteration, first, 0);
        self.draw(iteration, self.config.rollout.groups_per_iteration - 1, 0);
        let groups = self.open[&iteration].groups().len();
        self.event(
            EventKind::IterationOpened,
            format!("iteration {iteration} opened with {groups} groups"),
        );
        self.progress();
        true
    }

    /// Draws up to so many groups; fewer if every pair is banned by now.
    fn draw(&mut self, iteration: Iteration, count: u32, round: u32) {
        let until = self.banned_until(iteration);
        for _ in 0..count {
            let Some(row) = self.prompts.draw(until) else {
                return;
            };
            self.add_group(iteration, row, round);
        }
    }

    fn add_group(&mut self, iteration: Iteration, row: u32, round: u32) {
        let open = self.open.get_mut(&iteration).expect("opened by the caller");
        let drawn = open.draw(row, round);
        self.record(Entry::Drawn(drawn));
    }

    /// Replaces groups that were left out or given up; tells whether there are new ones.
    fn refill(&mut self, iteration: Iteration) -> bool {
        let open = &self.open[&iteration];
        let rounds = open.rounds();
        if rounds >= self.config.filter.refill_rounds_max {
            return false;
        }
        let kept = open
            .groups()
            .iter()
            .filter(|group| self.is_kept(group))
            .count() as u32;
        let missing = self
            .config
            .rollout
            .groups_per_iteration
            .saturating_sub(kept);
        let before = open.groups().len();
        self.draw(iteration, missing, rounds + 1);
        self.open[&iteration].groups().len() > before
    }

    fn is_kept(&self, group: &Group) -> bool {
        let rewards = group.rewards().filter(|_| !self.is_stale(group));
        rewards.is_some_and(|rewards| filter::keeps(&rewards, &self.config.filter))
    }

    /// A6: the policy that trains next is compared with the one that sampled.
    fn is_stale(&self, group: &Group) -> bool {
        let newest = group.drawn.group.iteration.0 - 1;
        let sampled_by = group.policy.map_or(newest, |policy| policy.iteration.0);
        newest.saturating_sub(sampled_by) > self.config.rollout.staleness_max
    }

    /// All groups are through: filters, and computes advantages over everything that has scores.
    fn seal(&mut self, iteration: Iteration) {
        let open = &self.open[&iteration];
        let scored: Vec<&Group> = open
            .groups()
            .iter()
            .filter(|group| group.rewards().is_some())
            .collect();
        let (stale, scored): (Vec<&Group>, Vec<&Group>) =
            scored.into_iter().partition(|group| self.is_stale(group));
        if scored.is_empty() && stale.is_empty() {
            return self.fail(no_scores(open));
        }
        let rewards: Vec<Vec<f64>> = scored.iter().filter_map(|group| group.rewards()).collect();
        let keep = filter::keep(&rewards, &self.config.filter);
        let kept = self.kept(&scored, &rewards, &keep);
        let solved = self.solved(&scored, &rewards);
        let mut metrics = IterationMetrics {
            iteration,
            groups: open.counts().total,
            scored: scored.len() as u32,
            kept: kept.len() as u32,
            filtered: (scored.len() - kept.len()) as u32,
            dropped: open.counts().dropped,
            stale: stale.len() as u32,
            refill_rounds: open.rounds(),
            samples_trained: kept.len() as u32 * self.config.rollout.group_size,
            filter_rate: ratio(scored.len() - kept.len(), scored.len()),
            entropy_mean: entropy_mean(&scored),
            ..IterationMetrics::default()
        };
        describe_rewards(&rewards, &mut metrics);
        metrics.stage_s.collect = (self.now_ms - open.opened_ms) as f64 / 1e3;
        for group in &scored {
            let timings = group
                .sampled
                .as_ref()
                .map(|sampled| sampled.timings)
                .unwrap_or_default();
            metrics.stage_s.rollout += timings.encode_s + timings.sample_s + timings.decode_s;
            metrics.stage_s.score += group.scored.as_ref().map_or(0.0, |scored| scored.scoring_s);
        }
        let message = format!(
            "iteration {iteration} sealed: {} of {} groups kept, mean reward {:.4}",
            metrics.kept, metrics.groups, metrics.reward_mean,
        );
        let sealed = Sealed {
            sealed_ms: self.now_ms,
            kept,
            solved,
            metrics,
        };
        self.open
            .get_mut(&iteration)
            .expect("looked up above")
            .sealed = Some(sealed);
        self.event(EventKind::IterationSealed, message);
        self.progress();
    }

    /// Advantages over all scored groups, then the kept ones' (REFERENCE sections 3 and 4).
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

    /// The control run gives every candidate another one's reward.
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
        let Some(open) = self.open.get_mut(&iteration) else {
            return;
        };
        if open.sealed.take().is_some()
            && self
                .training
                .as_ref()
                .is_some_and(|t| t.iteration == iteration)
        {
            self.abort_training();
        }
    }

    fn stop_for_want_of_pairs(&mut self) {
        if self.open.is_empty() {
            self.event(
                EventKind::Control,
                "every pair of the dataset is banned: nothing is left to learn".into(),
            );
            self.stop();
        }
    }

    /// Reward workers that are ready, to tell waiting from having nobody to wait for.
    pub(super) fn ready(&self, role: Role) -> usize {
        let ready = |worker: &&super::workers::Worker| {
            worker.presence == retouch_proto::status::Presence::Ready
        };
        self.workers
            .alive(role)
            .map(|(_, worker)| worker)
            .filter(ready)
            .count()
    }
}

fn permuted((rewards, permutation): (&Vec<f64>, &Option<Vec<usize>>)) -> Vec<f64> {
    match permutation {
        Some(permutation) => permutation.iter().map(|from| rewards[*from]).collect(),
        None => rewards.clone(),
    }
}

fn entropy_mean(scored: &[&Group]) -> f64 {
    let scores = scored
        .iter()
        .filter_map(|group| group.scored.as_ref())
        .flat_map(|scored| &scored.scores);
    let entropies = scores
        .flat_map(|score| &score.terms)
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
