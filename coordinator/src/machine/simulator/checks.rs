//! What must hold after every step.

pub(super) mod record;

use std::collections::BTreeMap;

use retouch_proto::worker::Role;

use crate::machine::Machine;
use crate::machine::groups::GroupState;
use crate::machine::io::Output;
use crate::machine::leases::Work;
use crate::machine::phase::Phase;

/// Checks the machine itself.
pub(super) fn machine(machine: &Machine) {
    leases(machine);
    groups(machine);
    training(machine);
    bounds(machine);
    let deadline_ms = machine
        .next_deadline()
        .expect("the machine always has something to look at");
    assert!(
        deadline_ms > machine.timers.now_ms(),
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
            lease.deadline_ms > machine.timers.now_ms(),
            "lease {id} outlived its deadline (A7)"
        );
        *per_worker.entry(&lease.worker).or_insert(0_u32) += 1;
        let matches = match lease.work {
            Work::Rollout(group) => {
                worker.role == Role::Rollout
                    && machine.open.group(group).map(|g| g.state())
                        == Some(&GroupState::Sampling(*id))
            }
            Work::Score(group) => {
                worker.role == Role::Reward
                    && machine.open.group(group).map(|g| g.state())
                        == Some(&GroupState::Scoring(*id))
            }
            Work::Train => {
                let training = machine.learning.training();
                let mut ranks = training.iter().flat_map(|training| &training.ranks);
                worker.role == Role::Learner && ranks.any(|rank| rank.lease == *id)
            }
            Work::Mint => {
                let minting = machine.learning.minting.as_ref();
                worker.role == Role::Learner && minting.is_some_and(|minting| minting.lease == *id)
            }
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
    for open in machine.open.iter() {
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
    let committed = machine.progress.committed().iteration;
    assert!(
        machine.open.iter().all(|open| open.iteration > committed),
        "a committed iteration is open"
    );
    let ahead = machine.config.rollout.staleness_max + 1;
    let mut open = machine.open.iter();
    assert!(open.all(|open| open.iteration.0 <= committed.0 + ahead));
}

fn training(machine: &Machine) {
    let Some(training) = machine.learning.training() else {
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

/// A7: nothing grows with the length of the run.
fn bounds(machine: &Machine) {
    let config = &machine.config;
    let groups = machine.open.groups().count();
    let ahead = config.rollout.staleness_max as usize + 1;
    let draws = 1 + config.filter.refill_rounds_max as usize;
    let groups_max = ahead * draws * config.rollout.groups_per_iteration as usize;
    let (workers, leases) = (
        machine.workers.iter().count(),
        machine.leases.iter().count(),
    );
    let within = |what: &str, count: usize, max: usize| {
        assert!(
            count <= max,
            "{count} {what}, at most {max} make sense (A7)"
        );
    };
    within("groups in flight", groups, groups_max);
    within(
        "timers",
        machine.timers.count(),
        workers + leases + groups_max + 16,
    );
    let blobs_max = (groups_max + 8) * (config.rollout.group_size as usize + 8);
    within(
        "blobs that are kept track of",
        machine.blobs.tracked(),
        blobs_max,
    );
    let policies_max = ahead + 1 + config.learner.checkpoint_every as usize;
    within("policies", machine.progress.policies(), policies_max);
    for (_, worker) in machine.workers.iter() {
        within(
            "hints for one worker",
            worker.prefetch.len(),
            2 * groups_max,
        );
    }
}

/// One batch of inputs makes no more outputs than there is to say.
pub(super) fn outputs(outputs: &[Output], inputs: usize, machine: &Machine) {
    let groups = machine.open.groups().count();
    let max = 8 * (machine.workers.iter().count() + groups + inputs) + 64;
    assert!(
        outputs.len() <= max,
        "{} outputs of one batch, at most {max} make sense (A7)",
        outputs.len()
    );
}

/// A machine made from the record alone goes on where this one is. (Of an ending run it would rightly go further.)
pub(super) fn rebuilt(machine: &Machine, rebuilt: &Machine) {
    if matches!(machine.phase, Phase::Stopping { .. } | Phase::Over { .. }) {
        return;
    }
    let view = |machine: &Machine| {
        let open = machine.open.iter();
        (
            machine.phase.standing(),
            machine.progress.committed(),
            machine.progress.checkpoint().clone(),
            machine.prompts.position(),
            machine.prompts.banned(),
            machine.telemetry.history().count(),
            open.map(|open| (open.iteration, open.groups().len()))
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(
        view(machine),
        view(rebuilt),
        "the record makes another machine (A8)"
    );
}
