//! The run's life: commands, the end, stalls, status.

use retouch_proto::Iteration;
use retouch_proto::status::{EventKind, Presence, RunState, Stage};
use retouch_proto::task::Task;
use retouch_proto::worker::{Directive, Role};

use super::driver::{Driver, config};
use crate::machine::io::Command;

const ROLLOUT: usize = 0;
const REWARD: usize = 1;
const LEARNER: usize = 2;

#[test]
fn a_run_goes_through_its_iterations_and_dismisses_everyone() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until(|driver| driver.exit.is_some());
    let outcome = driver.exit.clone().unwrap();
    assert_eq!((outcome.iteration, outcome.failure), (Iteration(3), None));
    assert_eq!(outcome.totals.groups_kept, 6);
    for peer in [ROLLOUT, REWARD, LEARNER] {
        assert_eq!(driver.directive(peer), Some(Directive::Shutdown));
    }
    assert_eq!(driver.machine.state(), RunState::Finished);
}

#[test]
fn the_exit_does_not_wait_for_ever_for_the_silent() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until(|driver| driver.machine.is_over());
    driver.pass(10_000);
    assert!(driver.exit.is_some());
}

#[test]
fn a_paused_run_gives_out_nothing_until_resumed() {
    let mut driver = Driver::with_all_roles(config());
    driver.command(Command::Pause);
    assert_eq!(driver.machine.state(), RunState::Paused);
    driver.work(ROLLOUT);
    driver.report(REWARD);
    assert!(
        driver.tasks(REWARD).is_empty(),
        "what was under way is taken, nothing new given"
    );
    driver.command(Command::Resume);
    assert_eq!(driver.tasks(REWARD).len(), 2);
    driver.work_until(|driver| driver.exit.is_some());
}

#[test]
fn a_drained_run_ends_after_the_open_iteration_with_a_checkpoint() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    driver.command(Command::Drain);
    driver.work_until(|driver| driver.exit.is_some());
    let outcome = driver.exit.clone().unwrap();
    assert_eq!((outcome.iteration, outcome.failure), (Iteration(2), None));
    assert_eq!(
        driver.machine.progress.checkpoint().committed.iteration,
        Iteration(2)
    );
}

#[test]
fn a_stopped_run_abandons_open_work_and_writes_down_the_last_iteration() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    driver.work_until(|driver| !driver.tasks(ROLLOUT).is_empty());
    driver.command(Command::Stop);
    driver.report(ROLLOUT);
    assert!(driver.tasks(ROLLOUT).is_empty(), "cancelled");
    let (_, Task::Train(task)) = driver.tasks(LEARNER).remove(0) else {
        panic!("training")
    };
    assert_eq!(
        (task.iteration, task.groups.len(), task.checkpoint),
        (Iteration(1), 0, true)
    );
    driver.work_until(|driver| driver.exit.is_some());
    assert_eq!(driver.exit.as_ref().unwrap().iteration, Iteration(1));
    assert_eq!(
        driver.machine.progress.checkpoint().committed.iteration,
        Iteration(1)
    );
}

#[test]
fn a_stopped_run_takes_over_nothing_from_those_who_come_back() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    driver.work_until(|driver| !driver.tasks(ROLLOUT).is_empty());
    let before = driver.tasks(ROLLOUT);
    driver.command(Command::Stop);
    assert_eq!(driver.machine.state(), RunState::Stopping);
    // It is still at work on what it was given, as after a restart of the coordinator.
    driver.register(ROLLOUT);
    assert!(driver.machine.leases.get(before[0].0).is_none());
    driver.report(ROLLOUT);
    assert!(driver.tasks(ROLLOUT).is_empty(), "cancelled");
}

#[test]
fn a_run_that_is_stopped_before_it_began_just_ends() {
    let mut driver = Driver::with_all_roles(config());
    driver.command(Command::Stop);
    driver.work_until(|driver| driver.exit.is_some());
    assert_eq!(driver.exit.as_ref().unwrap().ema_adapter, None);
}

#[test]
fn a_stop_without_learners_ends_with_the_last_checkpoint() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    driver.pass_reporting(4_000, &[ROLLOUT, REWARD]);
    driver.command(Command::Stop);
    driver.pass_reporting(61_000, &[ROLLOUT, REWARD]);
    assert!(driver.exit.is_some());
    assert_eq!(
        driver.machine.progress.checkpoint().committed.iteration,
        Iteration(0)
    );
}

#[test]
fn a_finished_run_that_is_started_again_ends_at_once() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until(|driver| driver.exit.is_some());
    let record = crate::machine::record::Record {
        committed: driver.machine.progress.committed(),
        checkpoint: driver.machine.progress.checkpoint().clone(),
        ..crate::machine::record::Record::empty(2)
    };
    let again = Driver::restored(config(), record);
    assert_eq!(
        again.exit.map(|outcome| outcome.ema_adapter),
        driver.exit.map(|outcome| outcome.ema_adapter)
    );
}

#[test]
fn groups_that_were_given_up_get_another_chance_when_the_run_is_started_again() {
    let driver = Driver::with_all_roles(config());
    let mut groups = driver.drawn();
    for group in &mut groups {
        group.dropped = Some("the judge was not there".into());
    }
    let open = vec![crate::machine::record::OpenRecord {
        iteration: Iteration(1),
        groups,
    }];
    let record = crate::machine::record::Record {
        open,
        ..crate::machine::record::Record::empty(2)
    };
    let mut again = Driver::restored(config(), record);
    for role in Role::ALL {
        again.join(role, 2);
    }
    again.work_until(|driver| driver.exit.is_some());
    assert_eq!(again.exit.unwrap().iteration, Iteration(3));
}

#[test]
fn a_missing_role_is_named_as_the_cause() {
    let mut driver = Driver::new(config());
    let rollout = driver.join(Role::Rollout, 2);
    driver.work(rollout);
    driver.pass_reporting(6_000, &[rollout]);
    let expected = "2 groups wait for a reward worker, and none is registered";
    let stalls = driver.machine.status(driver.now_ms).stalls;
    assert_eq!(
        stalls
            .iter()
            .map(|stall| stall.cause.as_str())
            .collect::<Vec<_>>(),
        [expected]
    );
    driver.pass_reporting(12_000, &[rollout]);
    assert_eq!(driver.events(EventKind::Stalled), [expected], "told once");
}

#[test]
fn missing_ranks_and_slow_tasks_are_named() {
    let mut config = config();
    config.learner.ranks = 2;
    let mut driver = Driver::with_all_roles(config);
    driver.work(ROLLOUT);
    driver.pass_reporting(40_000, &[ROLLOUT, REWARD, LEARNER]);
    let cause = &driver.machine.status(driver.now_ms).stalls[0].cause;
    assert_eq!(
        cause,
        "reward-0 has been scoring group 1/0 for more than half of lease_s = 60"
    );
    driver.work(REWARD);
    driver.pass_reporting(4_000, &[ROLLOUT, REWARD, LEARNER]);
    let cause = &driver.machine.status(driver.now_ms).stalls[0].cause;
    assert_eq!(
        cause,
        "1 of 2 learner ranks are ready, and 1 registered, 1 of them ready"
    );
}

#[test]
fn the_status_shows_everything() {
    let mut driver = Driver::with_all_roles(config());
    let status = driver.machine.status(driver.now_ms);
    assert_eq!(
        (status.iteration, status.committed, status.stage),
        (Iteration(1), Iteration(0), Stage::Collecting)
    );
    assert_eq!((status.groups.total, status.groups.sampling), (2, 2));
    assert_eq!(status.version, None);
    driver.now_ms += 1_000;
    driver.work_until_committed(1);
    let status = driver.machine.status(driver.now_ms);
    let rollout = status
        .workers
        .iter()
        .find(|worker| worker.role == Role::Rollout)
        .unwrap();
    assert_eq!(
        (rollout.state, rollout.done, rollout.slots),
        (Presence::Ready, 2, 2)
    );
    assert!(status.version.is_some() && status.rates.samples_per_s > 0.0 && status.eta_s.is_some());
    assert_eq!(status.history.len(), 1);
    driver.pass(10_000);
    let status = driver.machine.status(driver.now_ms);
    assert!(
        status
            .workers
            .iter()
            .all(|worker| worker.state == Presence::Lost)
    );
}
