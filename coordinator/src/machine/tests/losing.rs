//! Lost blobs, states and workers (A8, A9).

use retouch_proto::task::{Task, TaskOutcome};
use retouch_proto::worker::Role;
use retouch_proto::{ContentHash, Iteration};

use super::driver::{Driver, config};
use crate::machine::record::Entry;

const ROLLOUT: usize = 0;
const REWARD: usize = 1;
const LEARNER: usize = 2;

fn rewinds(driver: &Driver) -> Vec<(u32, u32)> {
    let rewinds = driver.entries.iter().filter_map(|entry| match entry {
        Entry::Rewound { from, to } => Some((from.0, to.0)),
        _ => None,
    });
    rewinds.collect()
}

#[test]
fn images_that_die_with_their_worker_are_made_again() {
    let mut driver = Driver::with_all_roles(config());
    driver.work(ROLLOUT);
    driver.report(REWARD);
    let before = driver.tasks(REWARD);
    assert_eq!(before.len(), 2);
    // The judge had not fetched them yet.
    let (_, Task::Score(task)) = before[0].clone() else {
        panic!("scores")
    };
    driver.restart(ROLLOUT);
    driver.fail(
        REWARD,
        "the owner is gone",
        true,
        vec![task.edits_png[0].hash],
    );
    assert_eq!(driver.machine.telemetry.totals.groups_remade, 1);
    assert_eq!(
        driver.machine.telemetry.totals.attempts_failed, 0,
        "not the judge's fault"
    );
    driver.pass_reporting(1_500, &[ROLLOUT, REWARD]);
    driver.work_until_committed(1);
    assert_eq!(driver.commits()[0].metrics.scored, 2);
}

#[test]
fn latents_that_are_lost_after_scoring_are_made_again_without_scoring_again() {
    let mut driver = Driver::new(config());
    let rollout = driver.join(Role::Rollout, 2);
    let reward = driver.join(Role::Reward, 2);
    driver.work(rollout);
    driver.work(reward);
    driver.restart(rollout);
    let learner = driver.join(Role::Learner, 1);
    driver.report(rollout);
    assert_eq!(driver.tasks(rollout).len(), 2, "made again before training");
    assert!(driver.tasks(learner).is_empty());
    driver.work(rollout);
    assert!(
        driver.tasks(reward).is_empty(),
        "the same bits keep their scores"
    );
    driver.work(learner);
    assert_eq!(driver.machine.progress.committed().iteration, Iteration(1));
    assert_eq!(driver.machine.telemetry.totals.groups_scored, 2);
}

#[test]
fn other_bits_are_scored_again() {
    let mut driver = Driver::new(config());
    let rollout = driver.join(Role::Rollout, 2);
    let reward = driver.join(Role::Reward, 2);
    driver.work(rollout);
    driver.work(reward);
    driver.peers[rollout].odd_device = true;
    driver.restart(rollout);
    let learner = driver.join(Role::Learner, 1);
    driver.report(rollout);
    driver.work(rollout);
    driver.report(reward);
    assert_eq!(
        driver.tasks(reward).len(),
        2,
        "the whole group is scored again (A9)"
    );
    driver.work(reward);
    driver.report(learner);
    driver.work(learner);
    assert_eq!(driver.machine.progress.committed().iteration, Iteration(1));
}

#[test]
fn latents_that_a_learner_cannot_fetch_are_made_again_and_the_step_repeated() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_training(&[LEARNER]);
    let (_, Task::Train(task)) = driver.tasks(LEARNER).remove(0) else {
        panic!("training")
    };
    let first = task.groups[0].x0.hash;
    driver.peers[ROLLOUT].lose(first);
    driver.fail(LEARNER, "not found", true, vec![first]);
    assert_eq!(driver.machine.telemetry.totals.groups_remade, 1);
    driver.pass_reporting(1_500, &[ROLLOUT, LEARNER]);
    driver.work_until_committed(1);
    assert_eq!(driver.machine.telemetry.totals.attempts_failed, 0);
}

#[test]
fn a_run_rewinds_to_the_checkpoint_when_all_learners_are_lost_and_repeats_itself() {
    let mut config = config();
    config.iterations = 6;
    config.learner.checkpoint_every = 2;
    let mut driver = Driver::with_all_roles(config);
    driver.work_until_committed(3);
    let versions: Vec<_> = driver
        .commits()
        .iter()
        .map(|commit| commit.committed.policy.hash())
        .collect();
    driver.restart(LEARNER);
    assert_eq!(rewinds(&driver), [(3, 2)]);
    assert_eq!(driver.machine.telemetry.totals.rewound, 1);
    driver.work_until_committed(3);
    let again = driver.commits()[3].committed;
    assert_eq!(
        (again.iteration, again.policy.hash()),
        (Iteration(3), versions[2])
    );
    let opened: Vec<u64> = driver
        .entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Opened {
                iteration: Iteration(3),
                position,
            } => Some(*position),
            _ => None,
        })
        .collect();
    assert_eq!(opened, [4, 4], "the same pairs");
}

#[test]
fn without_a_checkpoint_a_run_rewinds_to_its_start() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(2);
    driver.restart(LEARNER);
    assert_eq!(rewinds(&driver), [(2, 0)]);
    driver.work_until(|driver| driver.exit.is_some());
}

#[test]
fn a_learner_that_comes_back_with_its_state_within_the_grace_saves_the_iterations() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(2);
    driver.pass_reporting(6_000, &[ROLLOUT, REWARD]);
    assert_eq!(
        driver.machine.telemetry.totals.rewound, 0,
        "it is waited for"
    );
    // The same process after a broken network.
    driver.register(LEARNER);
    driver.report(LEARNER);
    driver.work_until_committed(3);
    assert!(rewinds(&driver).is_empty());
}

#[test]
fn a_peer_that_holds_the_state_saves_the_iterations() {
    let mut config = config();
    config.learner.ranks = 2;
    let mut driver = Driver::with_all_roles(config);
    let second = driver.join(Role::Learner, 1);
    driver.work_until_committed(2);
    driver.restart(LEARNER);
    driver.work_until_training(&[LEARNER, second]);
    let (_, Task::Train(task)) = driver.tasks(LEARNER).remove(0) else {
        panic!("training")
    };
    let owner = driver.peers[second].registration().blob_address;
    assert_eq!(task.state.unwrap().owners, [owner]);
    driver.work_until_committed(3);
    assert!(rewinds(&driver).is_empty());
}

#[test]
fn one_worker_that_cannot_fetch_the_policy_does_not_make_the_run_rewind() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    driver.work_until(|driver| !driver.tasks(ROLLOUT).is_empty());
    let version: ContentHash = driver.machine.progress.policy().hash().expect("an adapter");
    driver.fail(ROLLOUT, "connection refused", true, vec![version]);
    assert!(rewinds(&driver).is_empty());
    driver.pass_reporting(1_500, &[ROLLOUT, REWARD, LEARNER]);
    driver.work_until_committed(2);
    assert_eq!(driver.machine.telemetry.totals.groups_dropped, 0);
}

#[test]
fn fetching_in_vain_has_its_limit() {
    let mut config = config();
    config.iterations = 1;
    let mut driver = Driver::with_all_roles(config);
    driver.work(ROLLOUT);
    for _ in 0..40 {
        if let Some((_, Task::Score(task))) = driver.tasks(REWARD).into_iter().next() {
            driver.fail(REWARD, "no route", true, vec![task.sources_png[0].hash]);
        }
        driver.work(ROLLOUT);
        driver.pass_reporting(1_500, &[ROLLOUT, REWARD, LEARNER]);
    }
    let status = driver.machine.status(driver.now_ms);
    let reason = status.reason.expect("all groups failed in the end");
    assert!(
        reason.contains("16 fetches failed, the last on reward-0: no route"),
        "{reason}"
    );
}

#[test]
fn late_results_of_work_that_was_rewound_are_harmless() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(2);
    driver.work_until(|driver| !driver.tasks(ROLLOUT).is_empty());
    let (lease, task) = driver.tasks(ROLLOUT).remove(0);
    let outcome = driver.outcome(ROLLOUT, &task);
    driver.restart(LEARNER);
    assert_eq!(rewinds(&driver), [(2, 0)]);
    assert!(matches!(outcome, TaskOutcome::Rollout(_)));
    driver.end(ROLLOUT, lease, outcome);
    driver.work_until(|driver| driver.exit.is_some());
    assert_eq!(driver.exit.as_ref().unwrap().failure, None);
}
