//! The record as a plain data structure: what the store keeps in SQLite, and a model to compare
//! the store with.

use crate::machine::record::{Entry, GroupRecord, OpenRecord, Record};
use retouch_proto::{GroupId, Iteration};

/// A record in memory.
pub(super) struct Memory {
    record: Record,
    /// Every commit that was not taken back, for rewinds.
    commits: Vec<(
        crate::machine::record::Committed,
        retouch_proto::status::IterationMetrics,
    )>,
    rows_banned: Vec<(u32, Iteration)>,
}

impl Memory {
    pub(super) fn new() -> Self {
        Self {
            record: Record::empty(0),
            commits: Vec::new(),
            rows_banned: Vec::new(),
        }
    }

    /// What a coordinator that starts now finds.
    pub(super) fn load(&mut self) -> Record {
        self.record.incarnation += 1;
        let mut record = self.record.clone();
        record.banned = self.rows_banned.clone();
        record.history = self
            .commits
            .iter()
            .map(|(_, metrics)| metrics.clone())
            .collect();
        record.policies = vec![crate::machine::record::Policy::BASE];
        for (committed, _) in &self.commits {
            record.policies.push(committed.policy);
            record.committed = *committed;
        }
        if self.commits.is_empty() {
            record.committed = crate::machine::record::Committed::START;
        }
        if record.checkpoint.committed.iteration == record.committed.iteration {
            record.committed = record.checkpoint.committed;
        }
        record
    }

    pub(super) fn write(&mut self, entry: &Entry) {
        match entry {
            Entry::Opened {
                iteration,
                position,
            } => {
                self.record.open.retain(|open| open.iteration != *iteration);
                self.record.open.push(OpenRecord {
                    iteration: *iteration,
                    groups: Vec::new(),
                });
                self.set_position(*iteration, *position);
            }
            Entry::Drawn(drawn) => {
                let group = GroupRecord {
                    drawn: *drawn,
                    sampled: None,
                    scored: None,
                    dropped: None,
                };
                self.open(drawn.group.iteration).groups.push(group);
            }
            Entry::Sampled(sampled) => {
                let group = self.group(sampled.result.group);
                group.sampled = Some((sampled.policy, sampled.result.clone()));
                (group.scored, group.dropped) = (None, None);
            }
            Entry::Scored { result, .. } => {
                let group = self.group(result.group);
                (group.scored, group.dropped) = (Some(result.clone()), None);
            }
            Entry::Dropped { group, reason } => self.group(*group).dropped = Some(reason.clone()),
            Entry::Committed(entry) => {
                let iteration = entry.committed.iteration;
                self.record.open.retain(|open| open.iteration != iteration);
                self.rows_banned
                    .extend(entry.banned.iter().map(|row| (*row, iteration)));
                self.record.totals = entry.totals;
                self.set_position(iteration.next(), entry.next_position);
                self.commits.push((entry.committed, entry.metrics.clone()));
            }
            Entry::Checkpointed(checkpoint) => self.record.checkpoint = *checkpoint,
            Entry::Rewound { to, .. } => {
                self.record.open.clear();
                self.commits
                    .retain(|(committed, _)| committed.iteration <= *to);
                self.rows_banned.retain(|(_, at)| at <= to);
                self.record
                    .positions
                    .retain(|(iteration, _)| *iteration <= to.next());
            }
            Entry::Event(event) => self.record.event_sequence = event.sequence,
        }
    }

    fn set_position(&mut self, iteration: Iteration, position: u64) {
        self.record
            .positions
            .retain(|(other, _)| *other != iteration);
        self.record.positions.push((iteration, position));
    }

    fn open(&mut self, iteration: Iteration) -> &mut OpenRecord {
        let mut open = self.record.open.iter_mut();
        open.find(|open| open.iteration == iteration)
            .expect("an open iteration")
    }

    fn group(&mut self, id: GroupId) -> &mut GroupRecord {
        &mut self.open(id.iteration).groups[id.index as usize]
    }
}
