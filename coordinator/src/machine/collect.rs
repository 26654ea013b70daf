//! Iterations from their first draw until all their groups are through.

use retouch_proto::Iteration;
use retouch_proto::status::EventKind;

use super::Machine;
use super::groups::{Group, OpenIteration};
use super::record::Entry;
use crate::filter;

/// What a run says that ends since every pair is banned.
pub const NOTHING_LEFT: &str = "every pair of the dataset is banned: nothing is left to learn";

/// What came of opening an iteration.
#[derive(Debug, PartialEq, Eq)]
enum Opened {
    /// It is open.
    Open,
    /// Every pair is banned.
    NoPairs,
}

/// What came of replacing groups that were left out or dropped.
#[derive(Debug, PartialEq, Eq)]
enum Refilled {
    /// There are new groups.
    More,
    /// The iteration stays as it is.
    Full,
}

impl Machine {
    pub(super) fn collect(&mut self) {
        if !self.phase.is_active() {
            return;
        }
        self.open_iterations();
        // Refills wait for all groups: drawn as scores come in, they would depend on the order of those (A9).
        let ready = |open: &&OpenIteration| open.sealed.is_none() && open.is_collected();
        let ready = self.open.iter().filter(ready);
        let collected: Vec<Iteration> = ready.map(|open| open.iteration).collect();
        for iteration in collected {
            if self.refill(iteration) == Refilled::Full {
                self.seal(iteration);
            }
        }
    }

    /// Opens the iteration after the last committed one, and as many more as have their sampling policy already.
    fn open_iterations(&mut self) {
        let next = self.progress.next();
        let last = self.phase.last_iteration(self.config.iterations);
        for iteration in (next.0..=next.0 + self.config.rollout.staleness_max).map(Iteration) {
            let wanted = iteration <= last && self.open.get(iteration).is_none();
            if wanted && self.open_iteration(iteration) == Opened::NoPairs {
                return self.stop_for_want_of_pairs();
            }
        }
    }

    fn open_iteration(&mut self, iteration: Iteration) -> Opened {
        let Some((position, first)) = self.prompts.begin(iteration) else {
            return Opened::NoPairs;
        };
        self.record(Entry::Opened {
            iteration,
            position,
        });
        let now_ms = self.timers.now_ms();
        self.open.insert(OpenIteration::new(iteration, now_ms));
        self.add_group(iteration, first, 0);
        let groups = 1 + self.draw(iteration, self.config.rollout.groups_per_iteration - 1);
        self.event(
            EventKind::IterationOpened,
            format!("iteration {iteration} opened with {groups} groups"),
        );
        self.moved();
        Opened::Open
    }

    /// Draws up to `count` groups; gives how many, since every pair may be banned by now.
    fn draw(&mut self, iteration: Iteration, count: u32) -> u32 {
        for drawn in 0..count {
            let Some(row) = self.prompts.draw(iteration) else {
                return drawn;
            };
            self.add_group(iteration, row, 0);
        }
        count
    }

    /// Draws up to `count` groups in place of others; gives how many.
    fn replace(&mut self, iteration: Iteration, count: u32, round: u32) -> u32 {
        let open = self.open.get(iteration).expect("opened by the caller");
        let drawn = open.groups().iter().map(|group| group.drawn.row);
        let rows = self.prompts.replacements(iteration, drawn, count as usize);
        for row in &rows {
            self.add_group(iteration, *row, round);
        }
        rows.len() as u32
    }

    fn add_group(&mut self, iteration: Iteration, row: u32, round: u32) {
        let position = self.prompts.position();
        let open = self.open.get_mut(iteration).expect("opened by the caller");
        let drawn = open.draw(row, round, position);
        self.record(Entry::Drawn(drawn));
    }

    fn refill(&mut self, iteration: Iteration) -> Refilled {
        let open = self.open.get(iteration).expect("opened by the caller");
        let rounds = open.rounds();
        if rounds >= self.config.filter.refill_rounds_max {
            return Refilled::Full;
        }
        let kept = open.groups().iter().filter(|group| self.is_kept(group));
        let kept = kept.count() as u32;
        let wanted = self.config.rollout.groups_per_iteration;
        match self.replace(iteration, wanted.saturating_sub(kept), rounds + 1) {
            0 => Refilled::Full,
            _ => Refilled::More,
        }
    }

    fn is_kept(&self, group: &Group) -> bool {
        let rewards = group.rewards();
        rewards.is_some_and(|rewards| filter::keeps(&rewards, &self.config.filter))
    }

    fn stop_for_want_of_pairs(&mut self) {
        // What is open goes on: it was drawn before the last bans counted.
        if self.open.last().is_none() {
            self.event(EventKind::Control, NOTHING_LEFT.into());
            self.stop();
        }
    }
}
