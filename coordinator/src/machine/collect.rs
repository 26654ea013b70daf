//! Iterations from their first draw until all their groups are through.

use retouch_proto::Iteration;
use retouch_proto::status::EventKind;
use retouch_proto::worker::Role;

use super::Machine;
use super::control::Phase;
use super::groups::{Group, OpenIteration};
use super::record::Entry;
use crate::filter;

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
        let position = self.prompts.position();
        let open = self.open.get_mut(&iteration).expect("opened by the caller");
        let drawn = open.draw(row, round, position);
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
    pub(super) fn is_stale(&self, group: &Group) -> bool {
        let newest = group.drawn.group.iteration.0 - 1;
        let sampled_by = group.policy.map_or(newest, |policy| policy.iteration.0);
        newest.saturating_sub(sampled_by) > self.config.rollout.staleness_max
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
