//! How a run stands outlives its coordinator: orders, failures, and processes that are told to end.

use retouch_proto::Iteration;
use retouch_proto::status::{EventKind, Presence, RunState, Stall};
use retouch_proto::task::{Task, TaskFailure, TaskOutcome};
use retouch_proto::worker::{Directive, Role};

use super::driver::{Driver, config};
use crate::machine::io::{Command, Input};
use crate::machine::record::{Entry, Record, Standing};

const ROLLOUT: usize = 0;
const REWARD: usize = 1;
const LEARNER: usize = 2;

/// What is recorded last.
fn standing(driver: &Driver) -> Standing {
    let mut entries = driver.entries.iter().rev();
    let standing = entries.find_map(|entry| match entry {
        Entry::Stands(standing) => Some(standing.clone()),
        _ => None,
    });
    standing.unwrap_or_default()
}

/// A coordinator that is started after this one was killed; nobody has registered with it.
fn started_again(driver: &Driver) -> Driver {
    let record = Record {
        standing: standing(driver),
        committed: driver.machine.progress.committed(),
        checkpoint: driver.machine.progress.checkpoint().clone(),
        policies: vec![driver.machine.progress.policy()],
        ..Record::empty(2)
    };
    Driver::restored(config(), record)
}

#[test]
fn orders_are_recorded_before_they_are_answered_and_hold_for_the_next_coordinator() {
    let orders = [
        (Command::Pause, RunState::Paused),
        (Command::Drain, RunState::Draining),
        (Command::Stop, RunState::Stopping),
    ];
    for (order, state) in orders {
        let mut driver = Driver::with_all_roles(config());
        driver.work_until_committed(1);
        driver.command(order.clone());
        assert_eq!(driver.machine.state(), state, "{order:?}");
        let again = started_again(&driver);
        assert_eq!(again.machine.state(), state, "{order:?}");
        driver.command(Command::Resume);
        let resumed = order == Command::Pause;
        assert_eq!(standing(&driver) == Standing::Running, resumed, "{order:?}");
    }
}

#[test]
fn a_stopping_run_that_is_started_again_ends_when_its_state_is_written_down() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    driver.command(Command::Stop);
    let mut again = started_again(&driver);
    // The learner comes back with what it holds.
    let blobs = driver.peers[LEARNER].blobs.clone();
    let learner = again.join(Role::Learner, 1);
    again.peers[learner].blobs = blobs;
    again.register(learner);
    again.work_until(|driver| driver.exit.is_some());
    let outcome = again.exit.clone().unwrap();
    assert_eq!(outcome.iteration, Iteration(1));
    assert!(outcome.checkpointed && !outcome.suspended);
    assert_eq!(standing(&again), Standing::Stopped);
}

#[test]
fn a_failure_is_recorded_and_a_run_that_goes_on_draws_its_open_work_anew() {
    let mut driver = Driver::with_all_roles(config());
    for _ in 0..2 {
        driver.fail(ROLLOUT, "the image can't be decoded", false, Vec::new());
    }
    driver.work_until(|driver| driver.exit.is_some());
    let reason = driver.exit.as_ref().unwrap().failure.clone().unwrap();
    assert!(reason.contains("the image can't be decoded"), "{reason}");
    let failed = Standing::Failed { reason };
    assert_eq!(standing(&driver), failed);

    let record = Record {
        standing: failed,
        ..Record::empty(2)
    };
    let mut again = Driver::restored(config(), record);
    assert_eq!(standing(&again), Standing::Running);
    for role in Role::ALL {
        again.join(role, 2);
    }
    again.work_until(|driver| driver.exit.is_some());
    assert_eq!(again.exit.as_ref().unwrap().failure, None);
    assert_eq!(
        standing(&again),
        Standing::Running,
        "it may get more iterations"
    );
}

#[test]
fn a_run_of_which_nothing_was_learned_has_failed() {
    let mut config = config();
    config.filter.rule = retouch_proto::config::FilterRule::Paper;
    (config.filter.tau_mean, config.filter.tau_std) = (0.0, 1.0);
    let mut driver = Driver::with_all_roles(config);
    driver.work_until(|driver| driver.exit.is_some());
    let failure = driver.exit.as_ref().unwrap().failure.clone();
    let failure = failure.expect("it failed");
    assert!(
        failure.starts_with("nothing was learned: filter.rule = paper"),
        "{failure}"
    );
    let alarms = driver.events(EventKind::Alarm);
    let untrained = alarms.iter().filter(|alarm| alarm.starts_with("untrained"));
    assert_eq!(untrained.count(), 1, "{alarms:?}");
}

#[test]
fn a_run_whose_judge_is_constant_has_failed() {
    let mut driver = Driver::with_all_roles(config());
    while driver.exit.is_none() {
        for peer in [ROLLOUT, LEARNER] {
            driver.work(peer);
        }
        for (lease, task) in driver.tasks(REWARD) {
            let mut outcome = driver.outcome(REWARD, &task);
            if let TaskOutcome::Score(result) = &mut outcome {
                result
                    .scores
                    .iter_mut()
                    .for_each(|score| score.reward = 0.5);
            }
            driver.end(REWARD, lease, outcome);
        }
        driver.report(REWARD);
        driver.pass(10);
    }
    let failure = driver.exit.as_ref().unwrap().failure.clone();
    let failure = failure.expect("it failed");
    assert!(failure.contains("the same reward"), "{failure}");
    assert!(
        driver.exit.unwrap().checkpointed,
        "and is kept all the same"
    );
}

#[test]
fn a_coordinator_that_is_to_end_has_the_last_iteration_written_down_and_dismisses_nobody() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    driver.work_until_training(&[LEARNER]);
    driver.handle(Input::Suspend);
    driver.report(LEARNER);
    // The step of iteration 2 is given up, and iteration 1 written down.
    let (lease, Task::Train(task)) = driver.tasks(LEARNER).remove(0) else {
        panic!("training")
    };
    assert_eq!((task.iteration, task.groups.len()), (Iteration(1), 0));
    driver.command(Command::Pause);
    assert!(
        driver.answers.pop().unwrap().is_err(),
        "it hears no orders any more"
    );
    let outcome = driver.outcome(LEARNER, &Task::Train(task));
    driver.end(LEARNER, lease, outcome);
    let outcome = driver.exit.clone().expect("at once");
    assert!(outcome.suspended && outcome.checkpointed);
    assert_eq!(standing(&driver), Standing::Running);
    assert!(
        [ROLLOUT, REWARD, LEARNER]
            .iter()
            .all(|peer| driver.directive(*peer) != Some(Directive::Shutdown)),
        "they wait for the next one"
    );
}

#[test]
fn a_coordinator_that_is_to_end_does_not_wait_for_long() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    driver.command(Command::Pause);
    driver.handle(Input::Suspend);
    driver.pass(20_000);
    let outcome = driver.exit.clone().expect("after 20 s");
    assert!(outcome.suspended && !outcome.checkpointed);
    assert_eq!(
        standing(&driver),
        Standing::Paused,
        "it goes on as it stood"
    );
}

#[test]
fn a_learner_that_is_told_to_end_writes_down_what_it_alone_holds_also_for_a_coordinator_that_ends()
{
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    driver.peers[LEARNER].leaving = true;
    driver.report(LEARNER);
    driver.handle(Input::Suspend);
    driver.report(LEARNER);
    for (lease, task) in driver.tasks(LEARNER) {
        let outcome = driver.outcome(LEARNER, &task);
        driver.end(LEARNER, lease, outcome);
    }
    assert!(driver.exit.clone().expect("at once").checkpointed);
}

#[test]
fn a_worker_that_is_told_to_end_gets_nothing_more_and_is_let_go() {
    let mut driver = Driver::with_all_roles(config());
    driver.join(Role::Reward, 2);
    driver.peers[REWARD].leaving = true;
    driver.report(REWARD);
    assert_eq!(driver.directive(REWARD), Some(Directive::Shutdown));
    let id = driver.peers[REWARD].id.clone();
    let status = driver.machine.status(driver.now_ms);
    let worker = status.workers.iter().find(|worker| worker.id == id);
    assert_eq!(worker.unwrap().state, Presence::Left);
    driver.work_until_committed(1);
}

#[test]
fn a_full_disk_is_no_failed_attempt_however_long_it_lasts() {
    let mut driver = Driver::with_all_roles(config());
    for _ in 0..10 {
        for (lease, _) in driver.tasks(ROLLOUT) {
            let failure = TaskFailure::disk_full("cannot write blobs: no space left on device");
            driver.end(ROLLOUT, lease, TaskOutcome::Failed(failure));
        }
        driver.pass_reporting(4_000, &[ROLLOUT, REWARD, LEARNER]);
    }
    assert_eq!(driver.machine.telemetry.totals.attempts_failed, 0);
    let alarms = driver.events(EventKind::Alarm);
    assert_eq!(alarms.len(), 1, "told once: {alarms:?}");
    assert!(alarms[0].contains("no space left"), "{alarms:?}");
    driver.work_until(|driver| driver.exit.is_some());
    assert_eq!(driver.exit.unwrap().totals.groups_dropped, 0);
}

#[test]
fn work_that_met_a_full_disk_goes_to_whoever_has_space() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    let spare = driver.join(Role::Rollout, 2);
    let mut number = 0;
    // The first by name is idle each time, and has never any space.
    for _ in 0..100 {
        for (lease, _) in driver.tasks(ROLLOUT) {
            number += 1;
            let failure = TaskFailure::disk_full(format!("{number} bytes are in use"));
            driver.end(ROLLOUT, lease, TaskOutcome::Failed(failure));
        }
        for peer in [REWARD, LEARNER, spare] {
            driver.work(peer);
        }
        driver.pass_reporting(500, &[ROLLOUT]);
        if driver.exit.is_some() {
            break;
        }
    }
    let outcome = driver.exit.as_ref().expect("the other one does it all");
    assert_eq!(outcome.totals.groups_dropped, 0);
    // Once an iteration, however often it was met and whatever it said.
    let mut alarms = driver.events(EventKind::Alarm);
    alarms.retain(|alarm| alarm.contains("no space"));
    assert!((1..=2).contains(&alarms.len()), "{alarms:?}");
}

#[test]
fn a_learner_without_space_is_named_as_what_the_run_waits_for() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_training(&[LEARNER]);
    for _ in 0..20 {
        for (lease, _) in driver.tasks(LEARNER) {
            let failure = TaskFailure::disk_full("no space left on device");
            driver.end(LEARNER, lease, TaskOutcome::Failed(failure));
        }
        driver.pass_reporting(4_000, &[ROLLOUT, REWARD, LEARNER]);
    }
    let stalls = driver.machine.status(driver.now_ms).stalls;
    let named = |stall: &Stall| stall.cause.contains("no space left on device");
    assert!(stalls.iter().any(named), "{stalls:?}");
    driver.work_until(|driver| driver.exit.is_some());
}

#[test]
fn a_coordinator_that_is_to_end_lets_a_checkpoint_be_finished() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    driver.command(Command::Pause);
    driver.command(Command::Checkpoint);
    driver.report(LEARNER);
    let (lease, task) = driver.tasks(LEARNER).remove(0);
    driver.handle(Input::Suspend);
    driver.report(LEARNER);
    assert_eq!(driver.tasks(LEARNER).len(), 1, "it is not begun anew");
    let outcome = driver.outcome(LEARNER, &task);
    driver.end(LEARNER, lease, outcome);
    assert!(driver.exit.clone().expect("at once").checkpointed);
}

#[test]
fn a_failure_before_the_stop_does_not_delay_the_writing_down() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    driver.work_until_training(&[LEARNER]);
    driver.fail(LEARNER, "rank 1 is away", true, Vec::new());
    driver.handle(Input::Suspend);
    driver.work(LEARNER);
    assert!(driver.exit.clone().expect("at once").checkpointed);
}

#[test]
fn a_rank_that_is_gone_for_good_is_waited_for_once() {
    let mut config = config();
    config.learner.ranks = 2;
    config.iterations = 4;
    let mut driver = Driver::with_all_roles(config);
    let second = driver.join(Role::Learner, 1);
    driver.work_until_committed(1);
    let others = [ROLLOUT, REWARD, LEARNER];
    // It is silent from now on.
    let _ = second;
    let mut waited_ms = 0;
    while driver.exit.is_none() {
        if driver.machine.progress.committed().iteration == Iteration(3) {
            driver.command(Command::Checkpoint);
        }
        for peer in others {
            driver.work(peer);
        }
        driver.pass(100);
        waited_ms += 100;
        assert!(waited_ms < 60_000, "it does not end");
    }
    // Its silence, the grace of 10 s once, and no more for the third and fourth iteration and a checkpoint between them.
    assert!(waited_ms < 20_000, "{waited_ms} ms");
}
