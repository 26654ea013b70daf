//! What must hold after every step.

use std::collections::BTreeMap;

use retouch_proto::worker::Role;

use crate::machine::Machine;
use crate::machine::groups::GroupState;
use crate::machine::leases::Work;
use crate::machine::record::{Entry, SampledEntry};
use retouch_proto::{ContentHash, Iteration};

/// Checks the machine itself.
pub(super) fn machine(machine: &Machine) {
    leases(machine);
    groups(machine);
    training(machine);
    let deadline_ms = machine
        .next_deadline()
        .expect("the machine always has something to look at");
    assert!(
        deadline_ms > machine.now_ms,
        "a deadline that is past would be rung for ever (A7)"
    );
}

/// Every lease is one living worker's, and what it works on knows it.
fn leases(machine: &Machine) {
    let mut per_worker = BTreeMap::new();
    for (id, lease) in machine.leases.iter() {
        let worker = machine
            .workers
            .get(&lease.worker)
            .expect("a lease's worker is known");
        assert!(worker.is_alive(), "lease {id} is a lost worker's (A10)");
        assert!(
            worker.leases.contains(id),
            "worker {} does not know lease {id}",
            lease.worker
        );
        assert!(
            lease.deadline_ms > machine.now_ms,
            "lease {id} outlived its deadline (A7)"
        );
        *per_worker.entry(&lease.worker).or_insert(0_u32) += 1;
        let matches = match lease.work {
            Work::Rollout(group) => {
                worker.role == Role::Rollout
                    && machine.group(group).map(|g| g.state()) == Some(&GroupState::Sampling(*id))
            }
            Work::Score(group) => {
                worker.role == Role::Reward
                    && machine.group(group).map(|g| g.state()) == Some(&GroupState::Scoring(*id))
            }
            Work::Train => {
                let ranks = machine.training.iter().flat_map(|training| &training.ranks);
                worker.role == Role::Learner && ranks.clone().any(|rank| rank.lease == *id)
            }
            Work::Mint => worker.role == Role::Learner && machine.is_minting(*id),
        };
        assert!(
            matches,
            "lease {id} for {:?} is known to nobody who waits for it",
            lease.work
        );
    }
    for (id, worker) in machine.workers.iter() {
        let count = per_worker.get(id).copied().unwrap_or(0);
        assert_eq!(
            worker.leases.len() as u32,
            count,
            "{id} has leases that are not active"
        );
        assert!(
            count <= worker.slots.max(1),
            "{id} has {count} tasks for {} slots",
            worker.slots
        );
    }
}

fn groups(machine: &Machine) {
    for open in machine.open.values() {
        let counts = open.counts();
        let sum = counts.queued
            + counts.sampling
            + counts.sampled
            + counts.scoring
            + counts.scored
            + counts.dropped;
        assert_eq!(sum, counts.total);
        for group in open.groups() {
            if let Some(lease) = group.state().lease() {
                assert!(
                    machine.leases.get(lease).is_some(),
                    "group {} waits for nobody",
                    group.drawn.group
                );
            }
            if matches!(group.state(), GroupState::Sampled | GroupState::Scored) {
                let sampled = group.sampled.as_ref().expect("sampled");
                let policy = group.policy.expect("a sampled group's policy (A6)");
                assert_eq!(sampled.version, policy.hash(), "A6");
            }
            let scored = *group.state() == GroupState::Scored;
            assert!(!scored || group.scored.is_some(), "A5");
        }
    }
    let committed = machine.committed.iteration;
    assert!(
        machine.open.keys().all(|iteration| *iteration > committed),
        "a committed iteration is open"
    );
    let ahead = machine.config.rollout.staleness_max + 1;
    assert!(
        machine
            .open
            .keys()
            .all(|iteration| iteration.0 <= committed.0 + ahead)
    );
}

fn training(machine: &Machine) {
    let Some(training) = &machine.training else {
        return;
    };
    let world = training.ranks.len() as u32;
    assert!(
        machine.config.learner.gradient_shards.is_multiple_of(world),
        "A9"
    );
    assert!(world <= machine.config.learner.ranks);
    for rank in &training.ranks {
        let worker = machine
            .workers
            .get(&rank.member.0)
            .expect("a rank is known");
        let present = worker.is_alive() && worker.generation == rank.member.1;
        assert!(
            present || rank.result.is_some(),
            "a rank that is gone is waited for (A10)"
        );
    }
}

/// Checks the record as it is written.
#[derive(Default)]
pub(super) struct RecordCheck {
    committed: u32,
    checkpointed: u32,
    /// The version after each iteration, to see replays repeat it.
    versions: BTreeMap<u32, Option<ContentHash>>,
    pub(super) rewinds: u64,
    pub(super) commits: u64,
}

impl RecordCheck {
    /// `repeatable`: replays must repeat what was rewound, to the bit.
    pub(super) fn entry(&mut self, entry: &Entry, staleness_max: u32, repeatable: bool) {
        match entry {
            Entry::Opened { iteration, .. } => {
                assert!(
                    iteration.0 > self.committed,
                    "a committed iteration was opened again (A8)"
                );
            }
            Entry::Sampled(sampled) => {
                let SampledEntry { policy, result, .. } = &**sampled;
                assert_eq!(policy.hash(), result.version, "A6");
                let newest = result.group.iteration.0 - 1;
                assert!(
                    policy.iteration.0 + staleness_max >= newest,
                    "a stale sample was taken (A6)"
                );
            }
            Entry::Scored { result, .. } => {
                for (edit, score) in result.edits.iter().zip(&result.scores) {
                    let judged = [0.95, 0.5, f64::from(edit.0[0]) / 255.0].contains(&score.reward);
                    assert!(judged, "a score that no judge gave was recorded (A5)");
                }
            }
            Entry::Committed(entry) => {
                let iteration = entry.committed.iteration;
                assert_eq!(
                    iteration.0,
                    self.committed + 1,
                    "iterations are committed one after the other (A8)"
                );
                self.committed = iteration.0;
                self.commits += 1;
                let stale = entry.metrics.stale;
                assert!(
                    stale == 0 || staleness_max > 0,
                    "{stale} groups of iteration {iteration} are stale"
                );
                let version = entry.committed.policy.hash();
                let before = self.versions.insert(iteration.0, version);
                let repeats = before.is_none_or(|before| before == version);
                assert!(
                    repeats || !repeatable,
                    "the replay of iteration {iteration} made something else (A8, A9)"
                );
                assert!(
                    entry
                        .kept
                        .windows(2)
                        .all(|pair| pair[0].group < pair[1].group),
                    "kept groups in order"
                );
            }
            Entry::Checkpointed(checkpoint) => {
                assert_eq!(checkpoint.committed.iteration.0, self.committed, "A8");
                self.checkpointed = self.committed;
            }
            Entry::Rewound { from, to } => {
                assert_eq!(from.0, self.committed);
                assert_eq!(
                    *to,
                    Iteration(self.checkpointed),
                    "rewinds go to the last checkpoint (A8)"
                );
                self.committed = to.0;
                self.rewinds += 1;
            }
            Entry::Drawn(_) | Entry::Dropped { .. } | Entry::Event(_) => {}
        }
    }
}
