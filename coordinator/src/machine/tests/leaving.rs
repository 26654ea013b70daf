//! Workers that a person sends away.

use retouch_proto::status::{EventKind, Presence};
use retouch_proto::task::Task;
use retouch_proto::worker::{Directive, Role};
use retouch_proto::{Iteration, WorkerId};

use super::driver::{Driver, Peer, config};
use crate::machine::io::Command;

const ROLLOUT: Peer = 0;
const REWARD: Peer = 1;
const LEARNER: Peer = 2;

fn id(driver: &Driver, peer: Peer) -> WorkerId {
    driver.peers[peer].id.clone()
}

fn drain(driver: &mut Driver, peer: Peer) {
    let id = id(driver, peer);
    driver.told(Command::DrainWorker(id)).expect("it is there");
}

fn presence(driver: &Driver, peer: Peer) -> Presence {
    let id = id(driver, peer);
    let status = driver.machine.status(driver.now_ms);
    let worker = status.workers.iter().find(|worker| worker.id == id);
    worker.expect("it registered").state
}

#[test]
fn a_drained_worker_finishes_gets_no_more_and_goes_when_nothing_is_lost_with_it() {
    let mut driver = Driver::with_all_roles(config());
    let other = driver.join(Role::Rollout, 2);
    assert_eq!(driver.tasks(ROLLOUT).len(), 2);
    drain(&mut driver, ROLLOUT);
    driver.work(ROLLOUT);
    assert_eq!(presence(&driver, ROLLOUT), Presence::Leaving);
    assert!(driver.is_held(ROLLOUT), "it alone holds what it sampled");
    driver.work_until_committed(1);
    assert!(driver.tasks(ROLLOUT).is_empty());
    driver.report(ROLLOUT);
    assert_eq!(driver.directive(ROLLOUT), Some(Directive::Shutdown));
    assert_eq!(presence(&driver, ROLLOUT), Presence::Left);
    assert_eq!(driver.machine.telemetry.totals.groups_remade, 0);
    assert_eq!(driver.events(EventKind::WorkerLeft).len(), 1);
    assert_eq!(driver.events(EventKind::WorkerLost).len(), 0);
    assert_eq!(driver.tasks(other).len(), 2, "the others go on");
}

#[test]
fn a_worker_that_missed_its_dismissal_hears_it_again_and_a_new_one_gets_work() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    driver.work_until(|driver| !driver.tasks(ROLLOUT).is_empty());
    driver.join(Role::Rollout, 2);
    let name = id(&driver, ROLLOUT);
    driver.command(Command::RestartWorker(name));
    driver.report(ROLLOUT);
    assert_eq!(driver.directive(ROLLOUT), Some(Directive::Restart));
    driver.report(ROLLOUT);
    assert_eq!(driver.directive(ROLLOUT), Some(Directive::Restart));
    driver.restart(ROLLOUT);
    assert_eq!(presence(&driver, ROLLOUT), Presence::Ready);
    driver.work_until(|driver| driver.exit.is_some());
    assert_eq!(driver.exit.unwrap().iteration, Iteration(3));
}

#[test]
fn a_restarted_workers_tasks_go_to_others_at_once() {
    let mut driver = Driver::with_all_roles(config());
    let other = driver.join(Role::Rollout, 2);
    assert!(driver.tasks(other).is_empty());
    let name = id(&driver, ROLLOUT);
    driver.command(Command::RestartWorker(name));
    driver.report(ROLLOUT);
    assert_eq!(driver.tasks(other).len(), 2);
    assert_eq!(driver.machine.telemetry.totals.leases_lost, 2);
    assert_eq!(
        driver.machine.telemetry.totals.attempts_failed, 0,
        "nobody failed"
    );
}

#[test]
fn what_nobody_asks_for_is_not_waited_for_longer_than_a_lease() {
    let mut driver = Driver::new(config());
    let rollout = driver.join(Role::Rollout, 2);
    drain(&mut driver, rollout);
    driver.work(rollout);
    driver.pass_reporting(58_000, &[rollout]);
    assert_eq!(presence(&driver, rollout), Presence::Leaving);
    driver.pass_reporting(4_000, &[rollout]);
    assert_eq!(presence(&driver, rollout), Presence::Left);
}

#[test]
fn the_only_learner_writes_the_state_down_before_it_goes() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    drain(&mut driver, LEARNER);
    driver.report(LEARNER);
    let (_, Task::Train(task)) = driver.tasks(LEARNER).remove(0) else {
        panic!("training")
    };
    assert_eq!((task.groups.len(), task.checkpoint), (0, true));
    driver.work(LEARNER);
    assert_eq!(presence(&driver, LEARNER), Presence::Left);
    assert_eq!(
        driver.machine.progress.checkpoint().committed.iteration,
        Iteration(1)
    );
    driver.join(Role::Learner, 1);
    driver.work_until(|driver| driver.exit.is_some());
    assert_eq!(driver.machine.telemetry.totals.rewound, 0);
    assert_eq!(driver.exit.unwrap().iteration, Iteration(3));
}

#[test]
fn an_unknown_or_lost_worker_is_not_ordered_about() {
    let mut driver = Driver::with_all_roles(config());
    let nobody = WorkerId::new("nobody").unwrap();
    let answer = driver.told(Command::DrainWorker(nobody.clone()));
    assert_eq!(
        answer.unwrap_err(),
        "no worker nobody is in the run; there are rollout-0, reward-0, learner-0"
    );
    driver.pass(10_000);
    let lost = id(&driver, REWARD);
    let answer = driver.told(Command::RestartWorker(lost));
    assert_eq!(
        answer.unwrap_err(),
        "no worker reward-0 is in the run; nobody is"
    );
}

#[test]
fn the_status_shows_what_a_worker_samples_with() {
    let mut driver = Driver::with_all_roles(config());
    let policy = |driver: &Driver| {
        let status = driver.machine.status(driver.now_ms);
        let policies = status
            .workers
            .into_iter()
            .filter_map(|worker| worker.policy);
        policies.collect::<Vec<_>>()
    };
    assert_eq!(
        policy(&driver)
            .iter()
            .map(|policy| (policy.iteration, policy.version.clone()))
            .collect::<Vec<_>>(),
        [(Iteration(0), None)],
        "the base model, and of rollout workers alone"
    );
    driver.work_until_committed(1);
    driver.work_until(|driver| !driver.tasks(ROLLOUT).is_empty());
    let version = driver.machine.status(driver.now_ms).version;
    let policies = policy(&driver);
    assert_eq!(policies[0].iteration, Iteration(1));
    assert!(version.is_some() && policies[0].version == version);
}
