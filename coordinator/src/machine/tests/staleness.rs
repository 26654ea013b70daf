//! Asynchrony: samples of older policies, and how old they are (A6, A9).

use std::collections::{BTreeMap, BTreeSet};

use retouch_proto::status::EventKind;
use retouch_proto::task::{Task, TaskOutcome};
use retouch_proto::worker::Role;
use retouch_proto::{ContentHash, GroupId, Iteration};

use super::driver::{Driver, config};
use crate::machine::record::{Blob, Entry, OpenRecord, Policy, Record};
use crate::machine::simulator::fakes;

const ROLLOUT: usize = 0;
const REWARD: usize = 1;
const LEARNER: usize = 2;

#[test]
fn the_next_iteration_is_sampled_while_one_is_trained_and_learned_with_its_own_version() {
    let mut config = config();
    config.rollout.staleness_max = 1;
    let mut driver = Driver::with_all_roles(config);
    driver.work_until_training(&[LEARNER]);
    // Iteration 1 is being trained: all of iteration 2 is done meanwhile, and nothing of iteration 3.
    driver.work(ROLLOUT);
    driver.work(REWARD);
    let open: Vec<(u32, u32)> = driver
        .machine
        .open
        .iter()
        .map(|open| (open.iteration.0, open.counts().scored))
        .collect();
    assert_eq!(open, [(1, 2), (2, 2)], "in-flight work is bounded");
    let (lease, task) = driver.tasks(LEARNER).remove(0);
    let outcome = driver.outcome(LEARNER, &task);
    driver.end(LEARNER, lease, outcome);
    let (_, task) = driver.tasks(LEARNER).remove(0);
    let Task::Train(task) = task else {
        panic!("the second iteration is trained at once")
    };
    assert_eq!(task.iteration, Iteration(2));
    assert!(driver.machine.progress.committed().policy.hash().is_some());
    assert!(
        task.groups.iter().all(|group| group.version.is_none()),
        "v_old is the version that sampled, not the newest one"
    );
}

/// The iteration of the policy that samples each iteration, as the record has it.
fn samplers(driver: &Driver) -> BTreeMap<u32, BTreeSet<u32>> {
    let mut samplers = BTreeMap::<u32, BTreeSet<u32>>::new();
    for entry in &driver.entries {
        if let Entry::Sampled(sampled) = entry {
            let iteration = sampled.result.group.iteration.0;
            let samplers = samplers.entry(iteration).or_default();
            samplers.insert(sampled.policy.iteration.0);
        }
    }
    samplers
}

#[test]
fn the_policy_that_samples_an_iteration_is_the_same_whoever_is_first() {
    let mut config = config();
    config.iterations = 6;
    config.rollout.staleness_max = 2;
    let expected: BTreeMap<u32, BTreeSet<u32>> = (1..=6_u32)
        .map(|iteration| (iteration, [iteration.saturating_sub(3)].into()))
        .collect();
    // Rollout workers that are far ahead of the learner,
    let mut driver = Driver::with_all_roles(config.clone());
    driver.work_until(|driver| driver.exit.is_some());
    assert_eq!(samplers(&driver), expected);
    let adapter = driver.exit.unwrap().ema_adapter;
    // or that begin an iteration only after the one before it is trained.
    let mut slow = Driver::with_all_roles(config);
    for iteration in 1..=6 {
        while slow.machine.progress.committed().iteration.0 < iteration {
            slow.work(LEARNER);
            let mut tasks = slow.tasks(ROLLOUT);
            tasks.retain(|(_, task)| group_of(task).iteration.0 == iteration);
            match tasks.pop() {
                Some((lease, task)) => {
                    let outcome = slow.outcome(ROLLOUT, &task);
                    slow.end(ROLLOUT, lease, outcome);
                }
                None => slow.work(REWARD),
            }
            slow.pass(10);
        }
    }
    slow.work_until(|driver| driver.exit.is_some());
    assert_eq!(samplers(&slow), expected);
    assert_eq!(slow.exit.unwrap().ema_adapter, adapter);
}

fn group_of(task: &Task) -> GroupId {
    fakes::group_of(task).expect("a rollout worker's task")
}

#[test]
fn a_checkpoint_brings_the_policies_that_are_still_to_sample() {
    let mut config = config();
    config.iterations = 6;
    config.rollout.staleness_max = 2;
    config.learner.checkpoint_every = 4;
    let mut driver = Driver::with_all_roles(config.clone());
    driver.work_until(|driver| driver.exit.is_some());
    let adapter = driver.exit.as_ref().unwrap().ema_adapter;
    let mut driver = Driver::with_all_roles(config);
    while driver.machine.progress.committed().iteration < Iteration(5) {
        driver.work_until_training(&[LEARNER]);
        let (lease, task) = driver.tasks(LEARNER).remove(0);
        let outcome = driver.outcome(LEARNER, &task);
        driver.end(LEARNER, lease, outcome);
    }
    let checkpoint = driver.machine.progress.checkpoint().clone();
    let earlier: Vec<u32> = checkpoint.earlier.iter().map(|p| p.iteration.0).collect();
    assert_eq!(
        (checkpoint.committed.iteration.0, &earlier[..]),
        (4, &[2, 3][..])
    );
    let names: Vec<String> = checkpoint.files().map(|(_, name)| name).collect();
    assert!(
        names.contains(&"checkpoints/4/policy-2.safetensors".to_owned()),
        "{names:?}"
    );
    // The learner and whatever the rollout worker had of it are gone: back to the checkpoint, with its policies.
    for peer in [ROLLOUT, LEARNER] {
        driver.restart(peer);
    }
    driver.work_until(|driver| driver.exit.is_some());
    assert_eq!(driver.events(EventKind::Rewound).len(), 1);
    assert!(
        samplers(&driver)
            .values()
            .all(|samplers| samplers.len() == 1)
    );
    assert_eq!(driver.exit.unwrap().ema_adapter, adapter);
}

#[test]
fn a_group_that_an_older_program_had_sampled_by_another_policy_is_sampled_by_its_own_if_it_is_lost()
{
    let mut config = config();
    config.rollout.staleness_max = 1;
    let mut before = Driver::with_all_roles(config.clone());
    let (_, task) = before.tasks(ROLLOUT).remove(0);
    let TaskOutcome::Rollout(mut result) = before.outcome(ROLLOUT, &task) else {
        panic!("a rollout worker's task")
    };
    // Nobody has this policy any more, nor anything that it made.
    let adapter = Blob {
        hash: ContentHash::of(b"of an older program"),
        size_bytes: 19,
    };
    let other = Policy {
        iteration: Iteration(0),
        adapter: Some(adapter),
    };
    result.version = other.hash();
    let mut groups = before.drawn();
    groups.retain(|group| group.drawn.group.iteration == Iteration(1));
    let index = result.group.index as usize;
    groups[index].sampled = Some((other, result));
    let record = Record {
        open: vec![OpenRecord {
            iteration: Iteration(1),
            groups,
        }],
        ..Record::empty(2)
    };
    let mut driver = Driver::restored(config, record);
    for role in Role::ALL {
        driver.join(role, 2);
    }
    driver.work_until(|driver| driver.exit.is_some());
    assert_eq!(driver.exit.unwrap().totals.groups_dropped, 0);
}
