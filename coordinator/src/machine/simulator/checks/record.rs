//! What must hold of everything that is ever recorded.

use std::collections::{BTreeMap, BTreeSet};

use retouch_proto::{ContentHash, GroupId, Iteration};

use crate::machine::record::{CommittedEntry, Entry, OpenRecord, SampledEntry};
use crate::machine::simulator::fakes;
use crate::machine::simulator::memory::Memory;
use crate::machine::simulator::tally::Tally;

/// What became of an iteration's groups.
#[derive(Default)]
struct Fates {
    trained: u64,
    filtered: u64,
    dropped: Vec<(u32, String)>,
}

/// Checks the record as it is written.
#[derive(Default)]
pub(in crate::machine::simulator) struct RecordCheck {
    committed: u32,
    checkpointed: u32,
    /// The version after each iteration, to see replays repeat it.
    versions: BTreeMap<u32, Option<ContentHash>>,
    /// Of the iterations that were not taken back.
    fates: BTreeMap<u32, Fates>,
    rewinds: u64,
    commits: u64,
}

impl RecordCheck {
    /// Adds what the record came to.
    pub(in crate::machine::simulator) fn count(&self, tally: &mut Tally) {
        tally.commits += self.commits;
        tally.rewinds += self.rewinds;
        for fates in self.fates.values() {
            tally.trained += fates.trained;
            tally.filtered += fates.filtered;
            tally.dropped += fates.dropped.len() as u64;
        }
    }

    /// Rows and reasons of the groups that were given up.
    pub(in crate::machine::simulator) fn dropped(&self) -> Vec<(u32, String)> {
        let fates = self.fates.values();
        fates.flat_map(|fates| fates.dropped.clone()).collect()
    }

    /// Checks an entry before it is written to `memory`. `repeatable`: replays must repeat what was
    /// rewound, to the bit.
    pub(in crate::machine::simulator) fn entry(
        &mut self,
        entry: &Entry,
        memory: &Memory,
        staleness: u32,
        repeatable: bool,
    ) {
        match entry {
            Entry::Opened { iteration, .. } => {
                assert!(
                    iteration.0 > self.committed,
                    "a committed iteration was opened again (A8)"
                );
            }
            Entry::Sampled(sampled) => self.sampled(sampled, staleness),
            Entry::Scored { result, .. } => {
                for (edit, score) in result.edits.iter().zip(&result.scores) {
                    let judged = [0.95, 0.5, f64::from(edit.0[0]) / 255.0].contains(&score.reward);
                    assert!(judged, "a score that no judge gave was recorded (A5)");
                }
            }
            Entry::Committed(entry) => self.commit(entry, memory, repeatable),
            Entry::Checkpointed(checkpoint) => {
                assert_eq!(checkpoint.committed.iteration.0, self.committed, "A8");
                self.checkpointed = self.committed;
            }
            Entry::Rewound { from, to } => {
                assert_eq!(from.0, self.committed);
                assert!(
                    to == from || *to == Iteration(self.checkpointed),
                    "rewinds go to the last checkpoint (A8)"
                );
                self.committed = to.0;
                self.fates.retain(|iteration, _| *iteration <= to.0);
                self.rewinds += 1;
            }
            Entry::Dropped { reason, .. } => assert!(!reason.is_empty(), "A5"),
            Entry::Drawn(_) | Entry::Stands(_) | Entry::Event(_) => {}
        }
    }

    fn sampled(&self, sampled: &SampledEntry, staleness: u32) {
        let SampledEntry { policy, result, .. } = sampled;
        assert_eq!(policy.hash(), result.version, "A6");
        assert_eq!(
            policy.iteration.0,
            result.group.iteration.0.saturating_sub(1 + staleness),
            "group {} was sampled by another policy than its iteration's number says (A9)",
            result.group
        );
        let made_by = match policy.iteration.0 {
            0 => None,
            iteration => self.versions.get(&iteration).copied().flatten(),
        };
        assert_eq!(
            made_by, result.version,
            "a sample was taken of a version that its iteration did not publish (A6)"
        );
    }

    fn commit(&mut self, entry: &CommittedEntry, memory: &Memory, repeatable: bool) {
        let iteration = entry.committed.iteration;
        assert_eq!(
            iteration.0,
            self.committed + 1,
            "iterations are committed one after the other (A8)"
        );
        self.committed = iteration.0;
        self.commits += 1;
        let version = entry.committed.policy.hash();
        let before = self.versions.insert(iteration.0, version);
        let repeats = before.is_none_or(|before| before == version);
        assert!(
            repeats || !repeatable,
            "the replay of iteration {iteration} made something else (A8, A9)"
        );
        let open = memory
            .open(iteration)
            .expect("what is committed was opened");
        self.fates.insert(iteration.0, fates(entry, open));
        learned(entry, open, memory);
    }
}

/// Every group was trained on once, or left out for a reason.
fn fates(entry: &CommittedEntry, open: &OpenRecord) -> Fates {
    let kept: BTreeSet<GroupId> = entry.kept.iter().map(|kept| kept.group).collect();
    assert_eq!(
        kept.len(),
        entry.kept.len(),
        "a group is trained on twice (A8)"
    );
    let mut fates = Fates::default();
    for group in &open.groups {
        let id = group.drawn.group;
        let is_kept = kept.contains(&id);
        match (&group.scored, &group.dropped) {
            (Some(_), None) if is_kept => fates.trained += 1,
            (Some(_), None) => fates.filtered += 1,
            (_, Some(reason)) if !is_kept => {
                fates.dropped.push((group.drawn.row, reason.clone()));
            }
            _ => panic!("group {id} was neither trained on nor left out for a reason (A8)"),
        }
    }
    assert_eq!(
        fates.trained,
        kept.len() as u64,
        "a group of another iteration is trained on (A8)"
    );
    let metrics = &entry.metrics;
    assert_eq!(
        u64::from(metrics.filtered),
        fates.filtered,
        "groups left out are counted"
    );
    assert_eq!(metrics.dropped as usize, fates.dropped.len());
    fates
}

/// The state is what follows from the state before and from the recorded groups, each once, with
/// the version that sampled it (A6, A8).
fn learned(entry: &CommittedEntry, open: &OpenRecord, memory: &Memory) {
    let before = memory.committed().state.map(|state| state.hash);
    let after = entry.committed.state.map(|state| state.hash);
    if entry.kept.is_empty() && before == after {
        return;
    }
    let lessons = entry.kept.iter().map(|kept| {
        let group = &open.groups[kept.group.index as usize];
        let (policy, sampled) = group.sampled.as_ref().expect("what is kept was sampled");
        let advantages = &kept.advantages[..];
        (kept.group, sampled.x0.hash, policy.hash(), advantages)
    });
    assert_eq!(
        Some(fakes::state_after(before, lessons)),
        after,
        "iteration {} learned something else than its groups (A8)",
        entry.committed.iteration
    );
}
