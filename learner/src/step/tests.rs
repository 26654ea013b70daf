#[path = "../../tests/common/mod.rs"]
mod common;

use std::ops::ControlFlow;

use burn::tensor::TensorData;

use self::common::{config, editor, group, iteration, state};
use super::*;

/// However many micro batches the frozen policies are asked about at once, all sums have the same bits.
#[test]
fn policies_that_are_frozen_may_be_asked_about_many_pairs_at_once() {
    let (editor, mut config) = (editor(), config());
    config.learner.micro_batch_size = 2;
    let groups = [group(&editor, 0, 5), group(&editor, 2, 6)];
    let state = state(&editor, &config);
    let sums = |pairs_max: usize| {
        let mut rank = Rank::new(iteration(&editor, &config, &groups), &state);
        let groups = rank.groups.iter_mut().flatten();
        groups.for_each(|group| group.frozen_pairs_max = pairs_max);
        let mut times = StageTimes::default();
        let sums = shard_sums(&rank, 0..8, &mut times, &mut |_| ControlFlow::Continue(()));
        let sums = sums.unwrap().into_iter().map(Tensor::into_data);
        (sums.collect::<Vec<TensorData>>(), times.evaluations)
    };
    let one_by_one = sums(1);
    assert_eq!(one_by_one.1.old, one_by_one.1.theta);
    for pairs_max in [3, 4, 100] {
        assert!(sums(pairs_max) == one_by_one, "{pairs_max} pairs at once");
    }
}

#[test]
fn runs_are_of_one_group_and_no_larger_than_allowed() {
    let (editor, config) = (editor(), config());
    let groups = [group(&editor, 0, 5), group(&editor, 2, 6)];
    let state = state(&editor, &config);
    let mut rank = Rank::new(iteration(&editor, &config, &groups), &state);
    let pair = |group| Pair {
        sample: crate::plan::Sample { group, index: 0 },
        draw: 0,
        timestep: 0,
    };
    let batches = [(0, 2), (0, 2), (0, 3), (1, 2), (1, 1)];
    let batches = batches.map(|(group, pairs)| vec![pair(group); pairs]);
    let mut runs = |pairs_max: usize| -> Vec<usize> {
        let groups = rank.groups.iter_mut().flatten();
        groups.for_each(|group| group.frozen_pairs_max = pairs_max);
        let runs = rank.runs(&batches).unwrap();
        assert_eq!(runs.concat(), batches);
        runs.iter().map(|run| run.len()).collect()
    };
    assert_eq!(runs(1), [1, 1, 1, 1, 1]);
    assert_eq!(runs(4), [2, 1, 2]);
    assert_eq!(runs(6), [2, 1, 2]);
    assert_eq!(runs(7), [3, 2]);
}
