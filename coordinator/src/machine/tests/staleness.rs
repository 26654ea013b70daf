//! Asynchrony: samples of older policies, and how old they may be (A6).

use retouch_proto::Iteration;
use retouch_proto::task::Task;
use retouch_proto::worker::Role;

use super::driver::{Driver, config};
use crate::machine::record::{Committed, OpenRecord, Policy, Record};

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

#[test]
fn samples_older_than_allowed_are_left_out_and_counted() {
    let mut config = config();
    config.iterations = 4;
    config.rollout.staleness_max = 1;
    let policy = |iteration| Policy {
        iteration: Iteration(iteration),
        adapter: None,
    };
    // The first group of iteration 4 was sampled by the policy of iteration 1, the second was not.
    let mut groups = Driver::new(config.clone()).drawn();
    groups.retain(|group| group.drawn.group.iteration == Iteration(1));
    for group in &mut groups {
        group.drawn.group.iteration = Iteration(4);
    }
    let old = groups[0].drawn.group;
    let sampled = retouch_proto::task::RolloutTask {
        group: old,
        prompt: String::new(),
        requirement: String::new(),
        image: String::new(),
        version: None,
        group_size: 2,
    };
    let mut record = Record {
        committed: Committed {
            iteration: Iteration(3),
            state: None,
            policy: policy(3),
        },
        ..Record::empty(2)
    };
    let result = crate::machine::simulator::fakes::Fake::new(Role::Rollout, 9, 1).sample(&sampled);
    groups[0].sampled = Some((policy(1), result));
    record.open = vec![OpenRecord {
        iteration: Iteration(4),
        groups,
    }];
    let mut driver = Driver::restored(config, record);
    for role in Role::ALL {
        driver.join(role, 2);
    }
    // Nobody holds the old samples' images, so the same are made again, and are as old.
    driver.work_until(|driver| driver.exit.is_some());
    let commit = driver.commits()[0];
    assert_eq!(commit.stale, [old]);
    assert_eq!((commit.metrics.stale, commit.metrics.kept), (1, 1));
    assert_eq!(driver.machine.telemetry.totals.groups_stale, 1);
}
