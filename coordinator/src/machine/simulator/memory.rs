//! The record as a plain data structure: what the store keeps in SQLite, and a model to compare
//! the store with.

use retouch_proto::status::IterationMetrics;
use retouch_proto::{GroupId, Iteration};

use crate::machine::Machine;
use crate::machine::groups::{Group, GroupState, same_bits};
use crate::machine::record::{
    Checkpoint, Committed, Entry, GroupRecord, OpenRecord, Policy, Record, Standing,
};

/// A record in memory.
pub(super) struct Memory {
    record: Record,
    /// Every commit that was not taken back, for rewinds.
    commits: Vec<(Committed, IterationMetrics)>,
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
        self.record()
    }

    /// What is recorded.
    pub(super) fn record(&self) -> Record {
        let history = self.commits.iter().map(|(_, metrics)| metrics.clone());
        Record {
            committed: self.committed(),
            policies: self.sampling_policies(),
            banned: self.rows_banned.clone(),
            history: history.collect(),
            ..self.record.clone()
        }
    }

    /// The base and every version that was published and not taken back.
    pub(super) fn policies(&self) -> impl Iterator<Item = Policy> {
        let published = self.commits.iter().map(|(committed, _)| committed.policy);
        std::iter::once(Policy::BASE)
            .chain(published)
            .chain([self.committed().policy])
    }

    /// Those with which iterations after the checkpoint are sampled.
    fn sampling_policies(&self) -> Vec<Policy> {
        let Checkpoint {
            committed, earlier, ..
        } = &self.record.checkpoint;
        let after = self.commits.iter().map(|(committed, _)| committed);
        let after = after.filter(|later| later.iteration > committed.iteration);
        let earlier = earlier.iter().copied().chain([committed.policy]);
        let policies = earlier.chain(after.map(|later| later.policy));
        policies.filter(|policy| *policy != Policy::BASE).collect()
    }

    /// How the run stands.
    pub(super) fn standing(&self) -> &Standing {
        &self.record.standing
    }

    /// The last iteration that happened; as its checkpoint has it, if there is one.
    pub(super) fn committed(&self) -> Committed {
        let last = self.commits.last();
        let committed = last.map_or(Committed::START, |(committed, _)| *committed);
        let checkpointed = self.record.checkpoint.committed;
        match checkpointed.iteration == committed.iteration {
            true => checkpointed,
            false => committed,
        }
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
                self.open_mut(drawn.group.iteration).groups.push(group);
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
                self.record.drawn_to = entry.next_position;
                if self.open(iteration.next()).is_none() {
                    self.set_position(iteration.next(), entry.next_position);
                }
                self.commits.push((entry.committed, entry.metrics.clone()));
            }
            Entry::Checkpointed(checkpoint) => self.record.checkpoint = checkpoint.clone(),
            Entry::Stands(standing) => self.record.standing = standing.clone(),
            Entry::Rewound { to, .. } => {
                self.record.open.clear();
                self.commits
                    .retain(|(committed, _)| committed.iteration <= *to);
                self.rows_banned.retain(|(_, at)| at <= to);
                self.record
                    .positions
                    .retain(|(iteration, _)| *iteration <= to.next());
                let began = self
                    .record
                    .positions
                    .iter()
                    .find(|(at, _)| *at == to.next());
                self.record.drawn_to = began.map_or(0, |(_, position)| *position);
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

    /// An iteration that is not committed.
    pub(super) fn open(&self, iteration: Iteration) -> Option<&OpenRecord> {
        let mut open = self.record.open.iter();
        open.find(|open| open.iteration == iteration)
    }

    fn open_mut(&mut self, iteration: Iteration) -> &mut OpenRecord {
        let mut open = self.record.open.iter_mut();
        open.find(|open| open.iteration == iteration)
            .expect("an open iteration")
    }

    fn group(&mut self, id: GroupId) -> &mut GroupRecord {
        &mut self.open_mut(id.iteration).groups[id.index as usize]
    }

    /// Whatever the machine would not want to lose is here (A8).
    pub(super) fn check_against(&self, machine: &Machine) {
        assert_eq!(
            machine.progress.committed(),
            self.committed(),
            "not recorded (A8)"
        );
        assert_eq!(*machine.progress.checkpoint(), self.record.checkpoint, "A8");
        assert_eq!(machine.phase.standing(), self.record.standing, "A8");
        assert_eq!(
            machine.telemetry.event_sequence(),
            self.record.event_sequence,
            "A8"
        );
        let opened = self.record.open.iter().map(|open| open.iteration);
        assert!(
            machine.is_over() || opened.eq(machine.open.iter().map(|open| open.iteration)),
            "other iterations are recorded as open than are (A8)"
        );
        for open in machine.open.iter() {
            let record = self.open(open.iteration).expect("looked at above");
            assert_eq!(open.groups().len(), record.groups.len(), "A8");
            open.groups()
                .iter()
                .zip(&record.groups)
                .for_each(|(group, record)| check_group(group, record));
        }
    }
}

/// Samples that are of no use any more may still be recorded, but what is known is recorded.
fn check_group(group: &Group, record: &GroupRecord) {
    let id = group.drawn.group;
    assert_eq!(group.drawn, record.drawn, "group {id} (A8)");
    if let Some(sampled) = &group.sampled {
        let recorded = record.sampled.as_ref().map(|(_, sampled)| sampled);
        let same = recorded.is_some_and(|recorded| same_bits(recorded, sampled));
        assert!(same, "the sampling of group {id} is not recorded (A8)");
    }
    if let Some(scored) = &group.scored {
        let recorded = record.scored.as_ref() == Some(scored);
        assert!(recorded, "the scores of group {id} are not recorded (A8)");
    }
    if let GroupState::Dropped(reason) = group.state() {
        let recorded = record.dropped.as_ref() == Some(reason);
        assert!(recorded, "nothing records why group {id} was dropped (A5)");
    }
}
