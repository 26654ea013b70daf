//! Reports, leases, generations (A7, A10).

use retouch_proto::task::{Task, TaskOutcome, TaskResult};
use retouch_proto::worker::{Directive, Role, WorkerState};
use retouch_proto::{Generation, LeaseId};

use super::driver::{Driver, config};
use crate::machine::groups::GroupState;
use crate::machine::io::{Input, Ticket};

const ROLLOUT: usize = 0;
const REWARD: usize = 1;

#[test]
fn a_report_with_free_slots_is_held_until_there_is_work_or_time_is_up() {
    let mut driver = Driver::new(config());
    let reward = driver.join(Role::Reward, 1);
    driver.pass(1_999);
    assert!(driver.is_held(reward), "nothing to score yet");
    driver.pass(1);
    assert_eq!(
        driver.directive(reward),
        Some(Directive::Continue),
        "report_wait_ms_max is over"
    );
    driver.report(reward);
    let rollout = driver.join(Role::Rollout, 1);
    driver.work(rollout);
    assert_eq!(driver.tasks(reward).len(), 1, "work ends the wait");
}

#[test]
fn results_and_full_hands_are_answered_at_once() {
    let mut driver = Driver::new(config());
    let rollout = driver.join(Role::Rollout, 1);
    driver.report(rollout);
    assert!(!driver.is_held(rollout), "it has no room for work");
    let (lease, task) = driver.tasks(rollout).remove(0);
    let outcome = driver.outcome(rollout, &task);
    driver.end(rollout, lease, outcome);
    assert!(
        !driver.is_held(rollout),
        "it waits to have its result taken"
    );
}

#[test]
fn work_goes_to_the_least_loaded() {
    let mut driver = Driver::new(config());
    let first = driver.join(Role::Rollout, 1);
    let second = driver.join(Role::Rollout, 2);
    assert_eq!(
        (driver.tasks(first).len(), driver.tasks(second).len()),
        (1, 1)
    );
}

#[test]
fn who_is_still_loading_gets_no_work() {
    let mut driver = Driver::new(config());
    driver.join(Role::Rollout, 1);
    let loading = driver.join(Role::Rollout, 0);
    driver.peers[loading].slots = 2;
    driver.register(loading);
    let mut report = driver.peers[loading].report().unwrap();
    report.state = WorkerState::Loading;
    driver.handle(Input::Report(Ticket(1_000), report));
    assert!(
        driver
            .machine
            .workers
            .get(&driver.peers[loading].id)
            .unwrap()
            .leases
            .is_empty()
    );
}

#[test]
fn an_assignment_whose_answer_was_lost_is_sent_again_under_the_same_lease() {
    let mut driver = Driver::new(config());
    let rollout = driver.join(Role::Rollout, 1);
    let lost = std::mem::take(&mut driver.peers[rollout].running);
    driver.report(rollout);
    assert_eq!(driver.peers[rollout].running, lost);
}

#[test]
fn a_report_that_comes_twice_or_late_changes_nothing() {
    let mut driver = Driver::new(config());
    let rollout = driver.join(Role::Rollout, 2);
    let old = driver.peers[rollout].report().unwrap();
    driver.report(rollout);
    let leases = driver.peers[rollout].running.clone();
    let copy = retouch_proto::worker::Report {
        running: Vec::new(),
        slots_free: 2,
        ..old
    };
    driver
        .machine
        .handle(driver.now_ms, Input::Report(Ticket(1_000), copy));
    let id = &driver.peers[rollout].id;
    let known = &driver.machine.workers.get(id).unwrap().leases;
    assert!(known.iter().eq(leases.keys()), "late news is no news");
}

#[test]
fn what_nobody_wants_any_more_is_cancelled() {
    let mut driver = Driver::new(config());
    let rollout = driver.join(Role::Rollout, 3);
    let (stray, task) = (LeaseId(77), driver.stray_task());
    driver.peers[rollout].running.insert(stray, task);
    driver.report(rollout);
    assert_eq!(driver.replies[&rollout].cancel, [stray]);
}

#[test]
fn silence_loses_the_worker_and_its_lease_but_is_no_failed_attempt() {
    let mut driver = Driver::new(config());
    let rollout = driver.join(Role::Rollout, 1);
    let (_, Task::Rollout(task)) = driver.tasks(rollout).remove(0) else {
        panic!("a rollout")
    };
    driver.pass(2_999);
    assert_eq!(driver.machine.telemetry.totals.leases_lost, 0);
    driver.pass(1);
    assert_eq!(driver.machine.telemetry.totals.leases_lost, 1);
    let group = driver.machine.open.group(task.group).unwrap();
    assert_eq!((group.state(), group.attempts), (&GroupState::Queued, 0));
    let other = driver.join(Role::Rollout, 1);
    assert!(matches!(&driver.tasks(other)[..], [(_, Task::Rollout(again))] if *again == task));
}

#[test]
fn a_broken_connection_shortens_the_wait() {
    let mut driver = Driver::new(config());
    let reward = driver.join(Role::Reward, 1);
    let ticket = driver.report(reward);
    driver.handle(Input::HungUp(ticket));
    driver.pass(1_000);
    let id = driver.peers[reward].id.clone();
    assert!(
        !driver.machine.workers.get(&id).unwrap().is_alive(),
        "one heartbeat is enough"
    );
}

#[test]
fn a_new_generation_ends_the_old_one() {
    let mut driver = Driver::new(config());
    let rollout = driver.join(Role::Rollout, 1);
    let (lease, task) = driver.tasks(rollout).remove(0);
    let old = driver.peers[rollout].generation;
    let outcome = driver.outcome(rollout, &task);
    driver.restart(rollout);
    let new = driver.peers[rollout].generation;
    assert!(new > old);
    assert_eq!(driver.machine.telemetry.totals.leases_lost, 1);
    // The old process speaks once more: nobody listens (A10).
    driver.peers[rollout].generation = old;
    driver.peers[rollout]
        .results
        .push(TaskResult { lease, outcome });
    driver.report(rollout);
    assert_eq!(driver.directive(rollout), Some(Directive::Reregister));
    assert_eq!(driver.machine.telemetry.totals.groups_sampled, 0);
}

#[test]
fn a_generation_that_nobody_gave_is_sent_to_register() {
    let mut driver = Driver::new(config());
    let rollout = driver.join(Role::Rollout, 1);
    driver.peers[rollout].generation = Some(Generation(999));
    driver.report(rollout);
    assert_eq!(driver.directive(rollout), Some(Directive::Reregister));
}

#[test]
fn a_lease_that_runs_out_is_a_failed_attempt_and_the_work_goes_elsewhere() {
    let mut driver = Driver::new(config());
    let stuck = driver.join(Role::Rollout, 1);
    let other = driver.join(Role::Rollout, 1);
    driver.work(other);
    let (lease, task) = driver.tasks(stuck).remove(0);
    driver.pass_reporting(61_000, &[stuck, other]);
    assert_eq!(driver.machine.telemetry.totals.leases_expired, 1);
    assert!(driver.tasks(stuck).is_empty(), "it was told to stop");
    assert!(driver.tasks(other).iter().any(|(_, given)| *given == task));
    // It comes to an end after all, first: what it made is as good as another's.
    let outcome = driver.outcome(stuck, &task);
    driver.end(stuck, lease, outcome);
    assert_eq!(driver.machine.telemetry.totals.groups_sampled, 2);
    driver.report(other);
    assert!(driver.tasks(other).is_empty(), "the other one can stop");
}

#[test]
fn results_that_come_twice_count_once() {
    let mut driver = Driver::new(config());
    let rollout = driver.join(Role::Rollout, 1);
    let (lease, task) = driver.tasks(rollout).remove(0);
    let outcome = driver.outcome(rollout, &task);
    driver.end(rollout, lease, outcome.clone());
    driver.peers[rollout]
        .results
        .push(TaskResult { lease, outcome });
    driver.report(rollout);
    assert_eq!(driver.machine.telemetry.totals.groups_sampled, 1);
}

#[test]
fn a_sample_of_another_version_is_not_taken() {
    let mut driver = Driver::new(config());
    let rollout = driver.join(Role::Rollout, 1);
    let (lease, task) = driver.tasks(rollout).remove(0);
    let TaskOutcome::Rollout(mut result) = driver.outcome(rollout, &task) else {
        panic!("a rollout")
    };
    result.version = Some(retouch_proto::ContentHash::of(b"another adapter"));
    driver.end(rollout, lease, TaskOutcome::Rollout(result));
    assert_eq!(driver.machine.telemetry.totals.groups_sampled, 0);
    assert_eq!(driver.machine.telemetry.totals.attempts_failed, 1);
}

#[test]
fn scores_of_other_images_are_not_taken() {
    let mut driver = Driver::with_all_roles(config());
    driver.work(ROLLOUT);
    let (lease, task) = driver.tasks(REWARD).remove(0);
    let TaskOutcome::Score(mut result) = driver.outcome(REWARD, &task) else {
        panic!("scores")
    };
    result.edits.reverse();
    driver.end(REWARD, lease, TaskOutcome::Score(result));
    assert_eq!(driver.machine.telemetry.totals.groups_scored, 0);
    assert_eq!(driver.machine.telemetry.totals.attempts_failed, 1);
}

#[test]
fn a_worker_that_registers_again_goes_on_with_what_it_runs() {
    let mut driver = Driver::new(config());
    let rollout = driver.join(Role::Rollout, 2);
    driver.report(rollout);
    let record = crate::machine::record::Record {
        open: vec![crate::machine::record::OpenRecord {
            iteration: retouch_proto::Iteration(1),
            groups: driver.drawn(),
        }],
        ..crate::machine::record::Record::empty(2)
    };
    let running = driver.peers[rollout].running.clone();
    let peers = std::mem::take(&mut driver.peers);
    let mut restarted = Driver::restored(config(), record);
    restarted.peers = peers;
    restarted.register(rollout);
    restarted.report(rollout);
    assert_eq!(
        restarted.peers[rollout].running, running,
        "adopted under the old leases"
    );
    let id = &restarted.peers[rollout].id;
    assert!(
        restarted
            .machine
            .workers
            .get(id)
            .unwrap()
            .leases
            .iter()
            .eq(running.keys())
    );
    restarted.work(rollout);
    assert_eq!(restarted.machine.telemetry.totals.groups_sampled, 2);
}
