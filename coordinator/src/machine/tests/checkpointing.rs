//! Checkpoints that a person asks for.

use retouch_proto::Iteration;
use retouch_proto::status::EventKind;
use retouch_proto::task::Task;

use super::driver::{Driver, Peer, config};
use crate::machine::io::Command;

const ROLLOUT: Peer = 0;
const REWARD: Peer = 1;
const LEARNER: Peer = 2;

fn checkpointed(driver: &Driver) -> Iteration {
    driver.machine.progress.checkpoint().committed.iteration
}

/// Versions and states after each iteration.
fn left_behind(driver: &Driver) -> Vec<crate::machine::record::Committed> {
    let commits = driver.commits();
    commits.iter().map(|entry| entry.committed).collect()
}

#[test]
fn a_checkpoint_is_made_as_soon_as_the_learners_are_free_and_changes_nothing() {
    let mut undisturbed = Driver::with_all_roles(config());
    undisturbed.work_until(|driver| driver.exit.is_some());

    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    let answer = driver.told(Command::Checkpoint);
    assert_eq!(answer.unwrap(), "iteration 1 is being written down");
    assert!(driver.machine.status(driver.now_ms).checkpoint_pending);
    driver.work(LEARNER);
    assert_eq!(checkpointed(&driver), Iteration(1));
    assert!(!driver.machine.status(driver.now_ms).checkpoint_pending);
    let answer = driver.told(Command::Checkpoint);
    assert_eq!(answer.unwrap(), "iteration 1 has its checkpoint already");
    driver.work_until(|driver| driver.exit.is_some());
    assert_eq!(left_behind(&driver), left_behind(&undisturbed));
}

#[test]
fn a_checkpoint_that_is_asked_for_during_training_is_of_what_is_trained() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    driver.work_until_training(&[LEARNER]);
    let answer = driver.told(Command::Checkpoint);
    assert_eq!(
        answer.unwrap(),
        "iteration 2 is written down once it is trained"
    );
    driver.work(LEARNER);
    assert_eq!(checkpointed(&driver), Iteration(2));
}

#[test]
fn a_paused_run_still_makes_a_checkpoint() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    driver.command(Command::Pause);
    driver.command(Command::Checkpoint);
    driver.report(LEARNER);
    driver.work(LEARNER);
    assert_eq!(checkpointed(&driver), Iteration(1));
}

#[test]
fn before_anything_is_trained_there_is_nothing_to_write_down() {
    let mut driver = Driver::with_all_roles(config());
    let answer = driver.told(Command::Checkpoint);
    assert_eq!(
        answer.unwrap_err(),
        "nothing was trained yet, so there is nothing to write down"
    );
}

#[test]
fn a_checkpoint_that_cannot_be_made_is_given_up_and_the_run_goes_on() {
    for retryable in [true, false] {
        let mut driver = Driver::with_all_roles(config());
        driver.work_until_committed(1);
        driver.command(Command::Checkpoint);
        let attempts = if retryable { 3 } else { 1 };
        for _ in 0..attempts {
            driver.pass_reporting(4_000, &[ROLLOUT, REWARD, LEARNER]);
            let (_, Task::Train(task)) = driver.tasks(LEARNER).remove(0) else {
                panic!("training")
            };
            assert_eq!(task.groups, []);
            driver.fail(LEARNER, "the disk is full", retryable, Vec::new());
        }
        let told = driver.events(EventKind::Control);
        let last = told.last().expect("told");
        assert!(
            last.starts_with("the checkpoint that was asked for can't be made: rank 0"),
            "{last}"
        );
        assert!(!driver.machine.status(driver.now_ms).checkpoint_pending);
        driver.work_until(|driver| driver.exit.is_some());
        assert_eq!(driver.exit.as_ref().unwrap().failure, None);
    }
}
