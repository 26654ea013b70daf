//! Collective steps: all ranks or none (A8, A9).

use retouch_proto::config::{CollectiveKind, DeviceName};
use retouch_proto::status::{EventKind, RunState};
use retouch_proto::task::{Task, TaskFailure, TaskOutcome, TrainTask};
use retouch_proto::worker::Role;
use retouch_proto::{ContentHash, Iteration};

use super::driver::{Driver, Peer, config};
use crate::machine::io::Command;

const ROLLOUT: usize = 0;
const REWARD: usize = 1;
const FIRST: usize = 2;

/// Two ranks, the first iteration sealed and given out.
fn two_ranks() -> (Driver, Peer) {
    let mut config = config();
    config.learner.ranks = 2;
    let mut driver = Driver::with_all_roles(config);
    let second = driver.join(Role::Learner, 1);
    driver.work_until_training(&[FIRST, second]);
    (driver, second)
}

fn training(driver: &Driver, peer: Peer) -> TrainTask {
    match driver.tasks(peer).into_iter().next() {
        Some((_, Task::Train(task))) => task,
        other => panic!("no training but {other:?}"),
    }
}

#[test]
fn all_ranks_get_the_same_task_and_their_own_rank() {
    let (driver, second) = two_ranks();
    let (a, b) = (training(&driver, FIRST), training(&driver, second));
    assert_eq!(
        (a.collective.rank, b.collective.rank, a.collective.world),
        (0, 1, 2)
    );
    assert_eq!(a.collective.epoch, b.collective.epoch);
    assert_eq!(a.collective.peers.len(), 2);
    assert_eq!(
        (a.iteration, a.state.clone(), a.versions.len()),
        (Iteration(1), None, 0)
    );
    assert_eq!(a.groups.len(), 2);
    assert!(
        a.groups
            .windows(2)
            .all(|pair| pair[0].group < pair[1].group)
    );
}

/// Two ranks that meet through NCCL; the first has been asked for their unique id.
fn minting() -> (Driver, Peer) {
    let mut config = config();
    config.learner.ranks = 2;
    config.learner.collective = CollectiveKind::Nccl;
    config.learner.device = DeviceName::Cuda(0).into();
    let mut driver = Driver::with_all_roles(config);
    let second = driver.join(Role::Learner, 1);
    driver.work_until_training(&[FIRST]);
    assert!(matches!(driver.tasks(FIRST)[..], [(_, Task::Mint(_))]));
    (driver, second)
}

#[test]
fn every_rank_is_told_what_rank_0_minted_for_the_epoch() {
    let (mut driver, second) = minting();
    assert!(driver.tasks(second).is_empty(), "rank 1 can't begin yet");
    let (lease, task) = driver.tasks(FIRST).remove(0);
    let outcome = driver.outcome(FIRST, &task);
    let TaskOutcome::Mint(minted) = outcome else {
        panic!("{outcome:?}")
    };
    driver.end(FIRST, lease, TaskOutcome::Mint(minted));
    driver.work_until_training(&[FIRST, second]);
    for peer in [FIRST, second] {
        let collective = training(&driver, peer).collective;
        assert_eq!(collective.unique_id, Some(minted.unique_id));
        assert_eq!(collective.epoch, minted.epoch);
    }
    driver.work(FIRST);
    driver.work(second);
    driver.work_until_training(&[FIRST, second]);
    let later = training(&driver, second).collective;
    assert_eq!(later.unique_id, Some(minted.unique_id), "minted once");
}

#[test]
fn a_rank_that_is_alone_mints_too() {
    let mut config = config();
    config.learner.ranks = 1;
    config.learner.collective = CollectiveKind::Nccl;
    config.learner.device = DeviceName::Cuda(0).into();
    let mut driver = Driver::with_all_roles(config);
    driver.work_until_training(&[FIRST]);
    let (lease, task) = driver.tasks(FIRST).remove(0);
    let TaskOutcome::Mint(minted) = driver.outcome(FIRST, &task) else {
        panic!("{task:?}")
    };
    driver.end(FIRST, lease, TaskOutcome::Mint(minted));
    driver.work_until_training(&[FIRST]);
    let collective = training(&driver, FIRST).collective;
    assert_eq!(collective.unique_id, Some(minted.unique_id));
}

#[test]
fn the_rank_that_mints_may_be_lost_and_its_next_life_mints_anew() {
    let (mut driver, second) = minting();
    let (_, before) = driver.tasks(FIRST).remove(0);
    driver.restart(FIRST);
    driver.work_until_training(&[FIRST]);
    let (lease, after) = driver.tasks(FIRST).remove(0);
    let outcome = driver.outcome(FIRST, &after);
    let (Task::Mint(before), Task::Mint(after)) = (before, after) else {
        panic!("neither life was asked to train");
    };
    assert!(after.epoch > before.epoch);
    driver.end(FIRST, lease, outcome);
    driver.work_until_training(&[FIRST, second]);
}

#[test]
fn a_rank_that_cannot_mint_ends_the_run_with_its_reason() {
    let (mut driver, _) = minting();
    driver.fail(FIRST, "no libnccl.so.2", false, Vec::new());
    let events = driver.events(EventKind::Failed);
    assert_eq!(
        events,
        ["training failed: rank 0 on learner-0: no libnccl.so.2"]
    );
}

#[test]
fn a_run_that_is_stopped_does_not_fail_because_of_a_rank_that_cannot_mint() {
    let (mut driver, second) = minting();
    driver.work_until_committed(1);
    driver.restart(FIRST);
    driver.work_until_training(&[FIRST]);
    let (minting, task) = driver.tasks(FIRST).remove(0);
    assert!(matches!(task, Task::Mint(_)), "{task:?}");
    driver.command(Command::Stop);
    let failure = TaskFailure::lasting("no libnccl.so.2");
    driver.end(FIRST, minting, TaskOutcome::Failed(failure));
    driver.work(second);
    driver.work_until(|driver| driver.exit.is_some());
    let outcome = driver.exit.unwrap();
    assert_eq!((outcome.failure, outcome.checkpointed), (None, true));
}

#[test]
fn an_iteration_is_committed_when_the_last_rank_is_done() {
    let (mut driver, second) = two_ranks();
    let epoch = training(&driver, FIRST).collective.epoch;
    driver.work(FIRST);
    assert_eq!(driver.machine.progress.committed().iteration, Iteration(0));
    driver.work(second);
    assert_eq!(driver.machine.progress.committed().iteration, Iteration(1));
    driver.work_until_training(&[FIRST, second]);
    let task = training(&driver, second);
    assert_eq!(task.collective.epoch, epoch, "the membership is the same");
    let state = task.state.expect("the state of iteration 1");
    assert_eq!(state.owners.len(), 2, "both ranks hold it");
    assert_eq!(task.versions.len(), 1, "and the policy that sampled");
}

#[test]
fn a_lost_rank_is_waited_for_and_the_step_is_given_out_again_in_a_new_epoch() {
    let (mut driver, second) = two_ranks();
    let before = training(&driver, FIRST);
    driver.restart(second);
    driver.report(FIRST);
    let after = training(&driver, FIRST);
    assert!(after.collective.epoch > before.collective.epoch);
    assert_eq!((&after.groups, after.collective.world), (&before.groups, 2));
    assert_eq!(
        driver.peers[FIRST].running.len(),
        1,
        "the old task was cancelled"
    );
    driver.work(FIRST);
    driver.work(second);
    assert_eq!(driver.machine.progress.committed().iteration, Iteration(1));
    assert!(!driver.commits()[0].metrics.resharded);
}

#[test]
fn after_the_grace_the_collective_shrinks_and_says_so() {
    let (mut driver, _) = two_ranks();
    // The second rank falls silent; the others go on reporting.
    driver.pass_reporting(3_500, &[ROLLOUT, REWARD, FIRST]);
    assert!(
        driver.tasks(FIRST).is_empty(),
        "cancelled, and waiting for the rank"
    );
    driver.pass_reporting(9_000, &[ROLLOUT, REWARD, FIRST]);
    assert!(driver.tasks(FIRST).is_empty());
    driver.pass_reporting(3_000, &[ROLLOUT, REWARD, FIRST]);
    assert_eq!(training(&driver, FIRST).collective.world, 1);
    driver.work(FIRST);
    assert!(driver.commits()[0].metrics.resharded);
    assert_eq!(driver.events(EventKind::Resharded), ["1 of 2 ranks train"]);
}

#[test]
fn a_rank_that_is_lost_after_its_result_is_not_missed() {
    let (mut driver, second) = two_ranks();
    driver.work(FIRST);
    driver.restart(FIRST);
    assert!(!driver.tasks(second).is_empty());
    driver.work(second);
    assert_eq!(driver.machine.progress.committed().iteration, Iteration(1));
}

#[test]
fn results_of_another_epoch_are_nothing() {
    let (mut driver, second) = two_ranks();
    let (lease, task) = driver.tasks(FIRST).remove(0);
    let outcome = driver.outcome(FIRST, &task);
    driver.restart(second);
    driver.end(FIRST, lease, outcome);
    driver.work(second);
    assert_eq!(
        driver.machine.progress.committed().iteration,
        Iteration(0),
        "rank 0's result was of the old epoch"
    );
    driver.report(FIRST);
    driver.work(FIRST);
    assert_eq!(driver.machine.progress.committed().iteration, Iteration(1));
}

#[test]
fn ranks_that_disagree_made_nothing_and_the_run_fails_if_they_go_on() {
    let (mut driver, second) = two_ranks();
    for attempt in 1..=3 {
        driver.work_until_training(&[FIRST, second]);
        driver.work(FIRST);
        let (lease, task) = driver.tasks(second).remove(0);
        let TaskOutcome::Train(mut result) = driver.outcome(second, &task) else {
            panic!("training")
        };
        result.state.hash = ContentHash::of(b"something else");
        driver.end(second, lease, TaskOutcome::Train(result));
        assert_eq!(driver.machine.progress.committed().iteration, Iteration(0));
        assert_eq!(driver.events(EventKind::RanksDisagree).len(), attempt);
        driver.pass_reporting(4_000, &[ROLLOUT, REWARD, FIRST, second]);
    }
    let reason = driver
        .machine
        .status(driver.now_ms)
        .reason
        .expect("it failed");
    assert!(
        reason.contains("training failed 3 times") && reason.contains("rank 0 made state"),
        "{reason}"
    );
}

#[test]
fn a_failure_that_was_a_peers_death_is_no_attempt() {
    let mut config = config();
    config.learner.ranks = 2;
    config.cluster.attempts_max = 1;
    config.iterations = 1;
    let mut driver = Driver::with_all_roles(config);
    let second = driver.join(Role::Learner, 1);
    driver.work_until_training(&[FIRST, second]);
    // With one attempt, a failure that counts would end the run.
    driver.machine.config.cluster.attempts_max = 2;
    driver.fail(FIRST, "a peer closed the connection", true, Vec::new());
    driver.restart(second);
    driver.report(FIRST);
    assert!(
        !driver.tasks(FIRST).is_empty(),
        "no need to wait any longer"
    );
    driver.fail(FIRST, "a peer closed the connection", true, Vec::new());
    driver.restart(second);
    driver.report(FIRST);
    driver.work(FIRST);
    driver.work(second);
    assert_eq!(driver.machine.progress.committed().iteration, Iteration(1));
}

#[test]
fn what_training_can_never_do_fails_the_run_at_once() {
    let (mut driver, _) = two_ranks();
    driver.fail(FIRST, "the loss is not finite", false, Vec::new());
    let reason = driver
        .machine
        .status(driver.now_ms)
        .reason
        .expect("it failed");
    assert_eq!(
        reason,
        "training failed: rank 0 on learner-0: the loss is not finite"
    );
}

#[test]
fn checkpoints_come_every_so_often_and_at_the_end() {
    let mut config = config();
    config.iterations = 5;
    config.learner.checkpoint_every = 2;
    let mut driver = Driver::with_all_roles(config);
    driver.work_until(|driver| driver.exit.is_some());
    let adapters: Vec<bool> = driver
        .commits()
        .iter()
        .map(|commit| commit.metrics.ema_adapter.is_some())
        .collect();
    assert_eq!(adapters, [false, true, false, true, true]);
    let outcome = driver.exit.as_ref().unwrap();
    let last = driver.commits()[4].metrics.ema_adapter.clone();
    assert_eq!(outcome.ema_adapter.map(|hash| hash.to_string()), last);
}

#[test]
fn a_checkpoint_without_an_adapter_is_none() {
    let mut config = config();
    config.iterations = 1;
    let mut driver = Driver::with_all_roles(config);
    driver.work_until_training(&[FIRST]);
    let (lease, task) = driver.tasks(FIRST).remove(0);
    let TaskOutcome::Train(mut result) = driver.outcome(FIRST, &task) else {
        panic!("training")
    };
    result.ema_adapter = None;
    driver.end(FIRST, lease, TaskOutcome::Train(result));
    assert!(driver.commits().is_empty());
    let events = driver.events(EventKind::RanksDisagree);
    assert_eq!(
        events,
        ["rank 0 was asked for a checkpoint and named no adapter"]
    );
}

#[test]
fn more_learners_than_ranks_stand_by() {
    let mut driver = Driver::with_all_roles(config());
    let standby = driver.join(Role::Learner, 1);
    driver.work_until_committed(1);
    assert!(driver.tasks(standby).is_empty());
    // The one that holds the state goes on, whatever their names.
    driver.work_until_training(&[FIRST]);
    assert!(driver.tasks(standby).is_empty());
}

/// The second iteration is given out, and nothing is durable yet.
fn one_undurable_iteration() -> Driver {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    driver.work_until_training(&[FIRST]);
    assert_eq!(
        driver.machine.progress.checkpoint().committed.iteration,
        Iteration(0)
    );
    driver
}

#[test]
fn a_run_that_cannot_go_on_stops_with_a_checkpoint() {
    let mut driver = one_undurable_iteration();
    driver.fail(FIRST, "the loss is not finite", false, Vec::new());
    let status = driver.machine.status(driver.now_ms);
    let reason = "training failed: rank 0 on learner-0: the loss is not finite";
    assert_eq!(
        (status.state, status.reason.as_deref()),
        (RunState::Stopping, Some(reason))
    );
    assert_eq!(training(&driver, FIRST).groups, [], "only written down");
    driver.work_until(|driver| driver.exit.is_some());
    assert_eq!(
        driver.machine.progress.checkpoint().committed.iteration,
        Iteration(1)
    );
    let outcome = driver.exit.as_ref().expect("it is over");
    assert_eq!(outcome.failure.as_deref(), Some(reason));
    assert!(outcome.ema_adapter.is_some());
    assert_eq!(driver.events(EventKind::Failed), [reason]);
    assert!(driver.events(EventKind::Finished).is_empty());
}

#[test]
fn what_failed_first_is_the_reason_even_if_nothing_can_be_written_down() {
    let mut driver = one_undurable_iteration();
    driver.fail(FIRST, "the loss is not finite", false, Vec::new());
    driver.fail(FIRST, "the disk is on fire", false, Vec::new());
    driver.work_until(|driver| driver.exit.is_some());
    let reason = "training failed: rank 0 on learner-0: the loss is not finite";
    let outcome = driver.exit.as_ref().expect("it is over");
    assert_eq!(outcome.failure.as_deref(), Some(reason));
    let told = driver.events(EventKind::Control);
    let last = told.last().expect("told");
    let expected = "the last iteration can't be written down: training failed: rank 0 on learner-0: the disk is on fire";
    assert_eq!(last, expected);
}
