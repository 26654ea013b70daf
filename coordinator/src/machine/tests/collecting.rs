//! Groups from draw to seal (A5, A6).

use std::collections::BTreeSet;

use retouch_proto::config::{AdvantageStd, FilterRule, RewardTerm};
use retouch_proto::status::EventKind;
use retouch_proto::task::{
    SampleScore, ScoreResult, ScoreTask, Task, TaskOutcome, TermFailure, TermScore,
};
use retouch_proto::{GroupId, Iteration};

use super::driver::{Driver, config};
use crate::advantage::advantages;
use crate::machine::groups::GroupState;
use crate::machine::record::Entry;

const ROLLOUT: usize = 0;
const REWARD: usize = 1;
const LEARNER: usize = 2;

/// A task's result with these rewards.
fn scored(task: Task, rewards: Vec<f64>) -> ScoreResult {
    let Task::Score(task) = task else {
        panic!("expected a group to score, got {task:?}")
    };
    let score = |reward| SampleScore {
        reward,
        terms: Vec::new(),
    };
    ScoreResult {
        group: task.group,
        edits: task.edits_png.iter().map(|edit| edit.hash).collect(),
        scores: rewards.into_iter().map(score).collect(),
        unscored: Vec::new(),
        scoring_s: 0.0,
    }
}

/// Has every group sampled, and scores each with these rewards.
fn score_all(driver: &mut Driver, rewards: impl Fn(GroupId) -> Vec<f64>) {
    for _ in 0..20 {
        driver.work(ROLLOUT);
        for (lease, task) in driver.tasks(REWARD) {
            let Task::Score(ScoreTask { group, .. }) = task else {
                panic!("scores")
            };
            let result = scored(task, rewards(group));
            driver.end(REWARD, lease, TaskOutcome::Score(result));
        }
        driver.report(REWARD);
    }
}

fn drawn_rows(driver: &Driver, iteration: u32) -> Vec<u32> {
    let drawn = driver.entries.iter().filter_map(|entry| match entry {
        Entry::Drawn(drawn) if drawn.group.iteration.0 == iteration => Some(drawn.row),
        _ => None,
    });
    drawn.collect()
}

#[test]
fn a_task_that_fails_is_tried_elsewhere_then_dropped_with_its_reason() {
    let mut driver = Driver::new(config());
    let workers = [(); 3].map(|()| driver.join(retouch_proto::worker::Role::Rollout, 1));
    let (_, first) = driver.tasks(workers[0]).remove(0);
    driver.work(workers[1]);
    let mut tried = BTreeSet::new();
    for attempt in 1..=3 {
        let worker = workers
            .into_iter()
            .find(|w| driver.tasks(*w).iter().any(|(_, task)| *task == first));
        let worker = worker.expect("somebody has it");
        assert!(tried.insert(worker), "attempt {attempt} is elsewhere");
        driver.fail(worker, "out of memory", true, Vec::new());
        for _ in 0..3 {
            driver.pass(500);
            for worker in workers {
                driver.report(worker);
            }
        }
    }
    let group = GroupId {
        iteration: Iteration(1),
        index: 0,
    };
    let GroupState::Dropped(reason) = driver.machine.open.group(group).unwrap().state() else {
        panic!("dropped after three attempts");
    };
    assert_eq!(
        reason,
        "3 attempts failed, the last on rollout-2: out of memory"
    );
    assert!(
        driver
            .entries
            .iter()
            .any(|entry| matches!(entry, Entry::Dropped { group: g, .. } if *g == group))
    );
}

#[test]
fn the_only_worker_is_tried_again() {
    let mut driver = Driver::with_all_roles(config());
    driver.work(ROLLOUT);
    driver.fail(REWARD, "judge crashed", true, Vec::new());
    driver.pass_reporting(2_000, &[ROLLOUT, REWARD]);
    driver.work_until_committed(1);
    assert_eq!(driver.commits()[0].metrics.scored, 2);
    assert_eq!(driver.machine.telemetry.totals.attempts_failed, 1);
}

#[test]
fn what_can_never_work_is_dropped_at_once_and_the_rest_is_trained_on() {
    let mut driver = Driver::with_all_roles(config());
    driver.fail(ROLLOUT, "images/a.png is not an image", false, Vec::new());
    driver.work_until_committed(1);
    let metrics = &driver.commits()[0].metrics;
    assert_eq!((metrics.dropped, metrics.scored, metrics.kept), (1, 1, 1));
    let events = driver.events(EventKind::GroupDropped);
    assert_eq!(
        events,
        ["group 1/0 was dropped: images/a.png is not an image"]
    );
}

#[test]
fn a_run_without_any_score_fails_with_the_reason() {
    let mut driver = Driver::with_all_roles(config());
    driver.fail(ROLLOUT, "no such model", false, Vec::new());
    driver.fail(ROLLOUT, "no such model", false, Vec::new());
    let status = driver.machine.status(driver.now_ms);
    assert_eq!(
        status.reason.as_deref(),
        Some("all 2 groups of iteration 1 failed; the last reason: no such model"),
    );
}

#[test]
fn advantages_are_those_of_all_scored_groups_filtered_ones_included() {
    let mut config = config();
    config.filter.rule = FilterRule::Paper;
    let mut driver = Driver::with_all_roles(config);
    let rewards = [vec![0.95, 0.96], vec![0.2, 0.6]];
    score_all(&mut driver, |group| rewards[group.index as usize].clone());
    driver.work_until_committed(1);
    let commit = driver.commits()[0];
    assert_eq!(
        (
            commit.metrics.scored,
            commit.metrics.kept,
            commit.metrics.filtered
        ),
        (2, 1, 1)
    );
    let expected = advantages(&rewards, AdvantageStd::Global);
    assert_eq!(commit.kept[0].group.index, 1);
    assert_eq!(commit.kept[0].advantages, expected[1]);
    assert_eq!(commit.metrics.filter_rate, 0.5);
}

#[test]
fn the_control_run_permutes_rewards_before_advantages_and_records_it() {
    let mut config = config();
    config.reward.permute = true;
    config.rollout.group_size = 8;
    let mut driver = Driver::with_all_roles(config);
    let reward = |k: usize| k as f64 / 8.0;
    score_all(&mut driver, |_| (0..8).map(reward).collect());
    driver.work_until_committed(1);
    let mut permutations = BTreeSet::new();
    for kept in &driver.commits()[0].kept {
        let permutation = kept.permutation.clone().expect("recorded");
        let order = |a: &usize, b: &usize| kept.advantages[*a].total_cmp(&kept.advantages[*b]);
        let mut by_advantage: Vec<usize> = (0..8).collect();
        by_advantage.sort_by(order);
        let by_given: Vec<usize> = by_advantage.iter().map(|k| permutation[*k]).collect();
        assert_eq!(
            by_given,
            (0..8).collect::<Vec<_>>(),
            "candidate k got reward permutation[k]"
        );
        permutations.insert(permutation);
    }
    assert_eq!(permutations.len(), 2, "each group has its own");
}

#[test]
fn solved_pairs_are_banned_from_the_next_iteration_on() {
    let mut config = config();
    config.filter.ban = true;
    config.iterations = 20;
    let mut driver = Driver::with_all_roles(config);
    let solved = drawn_rows(&driver, 1)[0];
    for iteration in 1..=19 {
        score_all(&mut driver, |group| match group.iteration.0 {
            1 if group.index == 0 => vec![0.99, 0.99],
            _ => vec![0.1, 0.7],
        });
        driver.work(LEARNER);
        driver.work_until_committed(iteration);
    }
    assert_eq!(driver.commits()[0].banned, [solved]);
    assert_eq!(driver.commits()[0].metrics.banned_total, 1);
    // Two passes over twenty rows, two a time.
    for iteration in 2..=19 {
        assert!(
            !drawn_rows(&driver, iteration).contains(&solved),
            "iteration {iteration}"
        );
    }
}

#[test]
fn a_run_ends_when_every_pair_is_banned() {
    let mut config = config();
    config.filter.ban = true;
    config.iterations = 100;
    let mut driver = Driver::with_all_roles(config);
    for _ in 0..20 {
        score_all(&mut driver, |_| vec![0.99, 0.99]);
        driver.work(LEARNER);
    }
    let outcome = driver.exit.clone().unwrap();
    assert_eq!((outcome.iteration, outcome.failure), (Iteration(10), None));
    assert!(outcome.ema_adapter.is_some(), "with a checkpoint");
}

#[test]
fn left_out_groups_are_replaced_for_a_bounded_number_of_rounds() {
    let mut config = config();
    config.filter.rule = FilterRule::Paper;
    config.filter.refill_rounds_max = 2;
    let mut driver = Driver::with_all_roles(config);
    score_all(&mut driver, |group| {
        if group.index == 1 {
            vec![0.1, 0.9]
        } else {
            vec![0.99, 0.99]
        }
    });
    driver.work_until_committed(1);
    let commit = driver.commits()[0];
    // Two groups, of which one is left out; one for it; one for that.
    assert_eq!(
        (
            commit.metrics.groups,
            commit.metrics.kept,
            commit.metrics.refill_rounds
        ),
        (4, 1, 2)
    );
    let rows: BTreeSet<u32> = drawn_rows(&driver, 1).into_iter().collect();
    assert_eq!(rows.len(), 4, "replacements are new pairs");
}

#[test]
fn an_iteration_without_kept_groups_is_counted_and_trains_nothing() {
    let mut config = config();
    config.filter.rule = FilterRule::Paper;
    let mut driver = Driver::with_all_roles(config);
    score_all(&mut driver, |group| match group.iteration.0 {
        1 => vec![0.99, 0.99],
        _ => vec![0.1, 0.9],
    });
    let commit = driver.commits()[0];
    assert_eq!((commit.metrics.kept, commit.metrics.train), (0, None));
    assert_eq!(commit.committed.state, None);
    assert_eq!(driver.machine.telemetry.totals.empty_iterations, 1);
    driver.report(LEARNER);
    assert!(
        matches!(&driver.tasks(LEARNER)[..], [(_, Task::Train(task))] if task.iteration == Iteration(2))
    );
}

#[test]
fn learners_are_told_early_about_groups_that_will_be_kept_and_only_those() {
    let mut config = config();
    config.filter.rule = FilterRule::Paper;
    config.filter.refill_rounds_max = 1;
    let mut driver = Driver::with_all_roles(config);
    driver.work(ROLLOUT);
    let tasks = driver.tasks(REWARD);
    for (number, (lease, task)) in tasks.into_iter().enumerate() {
        let rewards = if number == 0 {
            vec![0.99, 0.99]
        } else {
            vec![0.1, 0.9]
        };
        let result = scored(task, rewards);
        driver.replies.remove(&LEARNER);
        driver.end(REWARD, lease, TaskOutcome::Score(result));
        let hints = driver
            .replies
            .get(&LEARNER)
            .map_or(0, |reply| reply.prefetch.len());
        assert_eq!(
            hints,
            if number == 0 { 0 } else { 2 },
            "x0 and condition of the kept group"
        );
    }
}

#[test]
fn a_watched_terms_failure_is_said_once_and_costs_nothing() {
    let mut config = config();
    config.reward.terms.push(RewardTerm {
        name: "watched".into(),
        weight: 0.0,
        ..RewardTerm::default()
    });
    let mut driver = Driver::with_all_roles(config);
    let term = |name: &str, value, entropy| TermScore {
        name: name.into(),
        value,
        probabilities: [0.0; 6],
        entropy,
    };
    // Two groups, of which the worker has one at a time.
    for _ in 0..2 {
        driver.work(ROLLOUT);
        for (lease, task) in driver.tasks(REWARD) {
            let mut result = scored(task, vec![0.25, 0.75]);
            result.scores[0].terms = vec![term("edit", 0.25, 0.5), term("watched", 1.0, 9.0)];
            result.unscored.push(TermFailure {
                term: "broken".into(),
                reason: "not finite".into(),
            });
            driver.end(REWARD, lease, TaskOutcome::Score(result));
        }
        driver.report(REWARD);
    }
    driver.work_until_committed(1);
    assert_eq!(
        driver.events(EventKind::TermFailed),
        ["watched reward term broken has no scores for group 1/0: not finite"]
    );
    assert_eq!(driver.machine.telemetry.totals.attempts_failed, 0);
    let metrics = &driver.commits()[0].metrics;
    assert_eq!((metrics.kept, metrics.reward_mean), (2, 0.5));
    let means: Vec<(&str, f64)> = metrics
        .reward_terms
        .iter()
        .map(|(name, mean)| (&name[..], *mean))
        .collect();
    assert_eq!(means, [("edit", 0.25), ("watched", 1.0)]);
    assert_eq!(metrics.entropy_mean, 0.5, "of the judges that are rewards");
}
