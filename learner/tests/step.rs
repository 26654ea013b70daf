//! A whole iteration: what its result may and may not depend on.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use burn::tensor::{DType, Device};
use common::{
    config, editor, editor_as, group, iteration, pipeline_of, sized_group, state, step, step_on,
};
use retouch_learner::metrics::Evaluations;
use retouch_learner::plan;
use retouch_learner::shards::{self, BoxError, Local, ShardReduce};
use retouch_learner::state::LearnerState;
use retouch_learner::step::{
    Culprit, SampledBy, SealedGroup, StepError, StepOutput, train_iteration,
};
use retouch_models::editor::{Editor, Parts};
use retouch_proto::RunConfig;
use retouch_proto::config::{Checkpointing, NotFinite};

fn groups(editor: &Editor) -> Vec<SealedGroup> {
    [(0, 5), (2, 5), (3, 4), (7, 5)]
        .map(|(index, size)| group(editor, index, size))
        .into()
}

/// A rank whose sums go through a channel to the one that adds them.
struct Member {
    rank: usize,
    world: usize,
    to_hub: Sender<(usize, Vec<Vec<f32>>)>,
    from_hub: Receiver<Vec<f32>>,
}

impl ShardReduce for Member {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn all_reduce(&mut self, shards: Vec<Vec<f32>>) -> Result<Vec<f32>, BoxError> {
        self.to_hub.send((self.rank, shards))?;
        Ok(self.from_hub.recv_timeout(Duration::from_secs(60))?)
    }
}

/// Adds the shards of all ranks, in rank order, and hands the sum to all.
fn hub(
    from_ranks: &Receiver<(usize, Vec<Vec<f32>>)>,
    to_ranks: &[Sender<Vec<f32>>],
) -> Result<(), RecvTimeoutError> {
    let mut shards = vec![Vec::new(); to_ranks.len()];
    for _ in to_ranks {
        let (rank, sums) = from_ranks.recv_timeout(Duration::from_secs(60))?;
        shards[rank] = sums;
    }
    let sum = shards::tree_sum(shards.concat());
    to_ranks
        .iter()
        .for_each(|rank| rank.send(sum.clone()).unwrap());
    Ok(())
}

/// The same iteration on `world` ranks; every rank's result.
fn on_ranks(world: usize, groups: &[SealedGroup]) -> Vec<Result<StepOutput, StepError>> {
    let config = config();
    on_ranks_from(world, groups, &config, &state(&editor(), &config))
}

fn on_ranks_from(
    world: usize,
    groups: &[SealedGroup],
    config: &RunConfig,
    state: &LearnerState,
) -> Vec<Result<StepOutput, StepError>> {
    let editor = editor();
    let (to_hub, from_ranks) = channel();
    std::thread::scope(|scope| {
        let (mut to_ranks, mut ranks) = (Vec::new(), Vec::new());
        for rank in 0..world {
            let (to_rank, from_hub) = channel();
            to_ranks.push(to_rank);
            let mut member = Member {
                rank,
                world,
                to_hub: to_hub.clone(),
                from_hub,
            };
            let editor = &editor;
            ranks.push(scope.spawn(move || {
                let shards = config.learner.gradient_shards as usize;
                let sizes: Vec<usize> = groups.iter().map(|g| g.advantages.len()).collect();
                let owned = shards::owned(shards, rank, world);
                let needed = plan::needed_groups(shards, owned, &sizes);
                let mut groups = groups.to_vec();
                for (index, group) in groups.iter_mut().enumerate() {
                    group.data = group.data.take().filter(|_| needed.contains(&index));
                }
                step_on(editor, config, state, &groups, &mut member)
            }));
        }
        hub(&from_ranks, &to_ranks).unwrap();
        drop(to_hub);
        // An iteration may be made again.
        while hub(&from_ranks, &to_ranks).is_ok() {}
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Groups of different aspects and numbers of tokens, as sources of any size give them.
fn groups_of_many_sizes(editor: &Editor) -> Vec<SealedGroup> {
    [
        (0, 3, [2, 2]),
        (1, 4, [1, 3]),
        (2, 2, [3, 2]),
        (3, 3, [4, 1]),
    ]
    .map(|(index, size, tokens)| sized_group(editor, index, size, tokens))
    .into()
}

#[test]
fn groups_of_many_sizes_train_together_whatever_the_ranks() {
    let editor = editor();
    let groups = groups_of_many_sizes(&editor);
    let alone = on_ranks(1, &groups).remove(0).unwrap();
    assert_eq!(alone.metrics.samples, 12);
    for output in on_ranks(4, &groups) {
        assert!(output.unwrap().state == alone.state);
    }
    // Every group counts: leaving one out changes the step.
    for left_out in 0..groups.len() {
        let mut others = groups.clone();
        others.remove(left_out);
        let without = on_ranks(1, &others).remove(0).unwrap();
        assert!(
            without.state != alone.state,
            "group {left_out} does not count"
        );
    }
}

#[test]
fn a_half_precision_base_gives_nearly_the_same_gradients() {
    let [full, half] = [DType::F32, DType::BF16].map(|dtype| {
        let (editor, config) = (editor_as(dtype), config());
        let (state, groups) = (state(&editor, &config), groups(&editor));
        step(&editor, &config, &state, &groups).unwrap()
    });
    // Adam's first moment is the gradient but for a factor, after the clipping.
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    let (a, b) = (&full.state.adam_m[..], &half.state.adam_m[..]);
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    println!("cosine of the gradients {cosine:.6}");
    assert!(cosine > 0.999, "{cosine}");
    let (a, b) = (
        full.metrics.terms.policy_loss,
        half.metrics.terms.policy_loss,
    );
    assert!((a - b).abs() < 0.02 * a.abs(), "{a} {b}");
    assert_ne!(a, b, "the second base is no narrower");
}

/// The parameters that a step of either base model ends with, in full and in half precision.
#[test]
fn activation_checkpointing_changes_no_bit() {
    let cases = [
        "kontext_pipeline__dpm2_truncated_prompt",
        "qwen_image_edit_pipeline__published_areas",
    ];
    for (case, dtype) in cases
        .into_iter()
        .flat_map(|case| [(case, DType::F32), (case, DType::BF16)])
    {
        let folder = pipeline_of(case);
        let editor = Editor::load_as(&folder, &Device::flex(), Parts::Transformer, dtype).unwrap();
        let groups = [group(&editor, 0, 5), group(&editor, 1, 4)];
        use Checkpointing::{Block, None};
        let [whole, by_block] = [None, Block].map(|checkpointing| {
            let mut config = config();
            config.learner.activation_checkpointing = checkpointing;
            let state = state(&editor, &config);
            step(&editor, &config, &state, &groups).unwrap()
        });
        assert!(whole.metrics.grad_norm > 0.0, "{case} {dtype:?}");
        assert!(whole.state == by_block.state, "{case} {dtype:?}");
    }
}

#[test]
fn equal_policies_are_evaluated_once() {
    let (editor, config) = (editor(), config());
    let (parted, groups) = (state(&editor, &config), groups(&editor));
    let together = LearnerState::initial(parted.theta.clone());
    let of = |state: &LearnerState, groups: &[SealedGroup]| {
        let metrics = step(&editor, &config, state, groups).unwrap().metrics;
        assert_eq!(metrics.pairs, 95);
        metrics.times.evaluations
    };
    let every = Evaluations {
        theta: 95,
        old: 95,
        reference: 95,
    };
    let only = |old| Evaluations { old, ..every };
    assert_eq!(of(&parted, &groups), every);
    assert_eq!(of(&together, &groups), only(0));
    // Of an earlier policy's two groups of five, the one sampled by the trained policy is left out too.
    let mut mixed = groups.clone();
    mixed[0].sampled_by = SampledBy::Earlier(parted.theta.clone().into());
    mixed[1].sampled_by = SampledBy::Earlier(parted.ema.clone().into());
    assert_eq!(of(&together, &mixed), only(25));
    assert_eq!(of(&parted, &mixed), only(70));
}

#[test]
fn rank_count_changes_no_bit() {
    let groups = groups(&editor());
    let alone = on_ranks(1, &groups).remove(0).unwrap();
    for world in [2, 4, 8] {
        for output in on_ranks(world, &groups) {
            let mut output = output.unwrap();
            assert!(output.state == alone.state, "{world} ranks");
            output.metrics.times = alone.metrics.times;
            assert_eq!(output.metrics, alone.metrics, "{world} ranks");
        }
    }
}

#[test]
fn thread_count_changes_no_bit() {
    let (editor, config) = (editor(), config());
    let (state, groups) = (state(&editor, &config), groups(&editor));
    let with_threads = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let output = pool.install(|| step(&editor, &config, &state, &groups).unwrap());
        output.state.content_hash()
    };
    let alone = with_threads(1);
    assert_eq!(with_threads(2), alone);
    assert_eq!(with_threads(5), alone);
}

#[test]
fn batch_size_changes_only_rounding() {
    let (editor, mut config) = (editor(), config());
    let (state, groups) = (state(&editor, &config), groups(&editor));
    let one = step(&editor, &config, &state, &groups).unwrap();
    config.learner.micro_batch_size = 7;
    config.learner.gradient_shards = 3;
    let other = step(&editor, &config, &state, &groups).unwrap();
    assert_eq!((one.metrics.samples, one.metrics.pairs), (19, 95));
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-4 * b.abs();
    assert!(close(one.metrics.loss, other.metrics.loss));
    assert!(close(one.metrics.grad_norm, other.metrics.grad_norm));
    assert!(close(
        one.metrics.terms.old_deviate_max,
        other.metrics.terms.old_deviate_max
    ));
}

#[test]
fn only_kept_groups_cost_anything() {
    let (editor, config) = (editor(), config());
    let (state, groups) = (state(&editor, &config), groups(&editor));
    let mut seen = Vec::new();
    let iteration = iteration(&editor, &config, &groups[..2]);
    let mut observe = |progress| {
        seen.push(progress);
        ControlFlow::Continue(())
    };
    train_iteration(iteration, &state, &mut Local, &mut observe).unwrap();
    assert!(
        seen.iter()
            .all(|p| p.total == 2 * 5 * 5 && p.done < p.total)
    );

    let none = step(&editor, &config, &state, &[]).unwrap();
    assert!(none.state == state);
    assert_eq!(none.metrics.pairs, 0);
}

#[test]
fn what_is_not_finite_is_named_by_every_rank() {
    let editor = editor();
    let mut groups = groups(&editor);
    let data = groups[2].data.as_mut().unwrap();
    data.x0 = data.x0.clone().slice_fill([3..4, 1..2, 0..1], f32::NAN);
    for result in on_ranks(2, &groups) {
        let error = result.unwrap_err();
        let StepError::NotFinite {
            group,
            sample,
            what,
            ..
        } = error
        else {
            panic!("{error}")
        };
        assert_eq!(
            (group, sample, what),
            (groups[2].group, 3, Culprit::CleanLatent)
        );
    }
    let mut groups = groups_with_advantage(&editor, f64::INFINITY);
    let error = step(&editor, &config(), &state(&editor, &config()), &groups).unwrap_err();
    assert!(
        error.to_string().contains("sample 1 of group 1/0 is inf"),
        "{error}"
    );
    groups[0].advantages.pop();
    let error = step(&editor, &config(), &state(&editor, &config()), &groups).unwrap_err();
    assert!(
        error.to_string().contains("5 samples and 4 advantages"),
        "{error}"
    );
}

fn config_that_drops() -> RunConfig {
    let mut config = config();
    config.learner.not_finite = NotFinite::Drop;
    config
}

#[test]
fn a_sample_that_is_not_finite_is_dropped_where_that_is_wanted() {
    let editor = editor();
    let config = config_that_drops();
    let mut groups = groups(&editor);
    let shorter = without_last(&groups);
    let data = groups[3].data.as_mut().unwrap();
    data.x0 = data
        .x0
        .clone()
        .slice_fill([4..5, 0..1, 0..1], f32::INFINITY);
    let outputs = on_ranks_from(2, &groups, &config, &state(&editor, &config));
    let outputs: Vec<StepOutput> = outputs.into_iter().map(Result::unwrap).collect();
    assert!(outputs[0].state == outputs[1].state);
    let (without, all) = (
        outputs[0].metrics,
        step(&editor, &config, &state(&editor, &config), &shorter),
    );
    let all = all.unwrap();
    assert_eq!((without.samples, without.pairs), (18, all.metrics.pairs));
    let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
    assert!(
        outputs[0]
            .state
            .theta
            .iter()
            .zip(&all.state.theta)
            .all(close)
    );
    assert!((without.loss - all.metrics.loss).abs() < 1e-6);
}

/// Settings and groups with which the loss of every sample is finite, and the gradient of one is not.
///
/// Where the old policy is the trained one, a sample's gradient grows with its advantage and its loss does not. A
/// large alpha brings all gradients near the largest number without changing a loss, since the second factors are 0;
/// the last sample's advantage then takes its own beyond.
fn one_gradient_too_large(editor: &Editor) -> (RunConfig, Vec<SealedGroup>, LearnerState) {
    let mut config = config();
    config.lora.adapter.alpha = 6e35;
    config.advantage.adv_clip_max = 1e6;
    let mut groups = groups(editor);
    *groups[3].advantages.last_mut().unwrap() = 1e6;
    let state = LearnerState::initial(state(editor, &config).theta);
    (config, groups, state)
}

#[test]
fn a_gradient_that_is_not_finite_is_named_by_every_rank() {
    let (config, groups, state) = one_gradient_too_large(&editor());
    for world in [1, 2, 4] {
        for result in on_ranks_from(world, &groups, &config, &state) {
            let error = result.unwrap_err().to_string();
            assert!(
                error.starts_with("gradient of sample 4 of group 1/7 is not finite at timestep"),
                "{error}"
            );
        }
    }
}

#[test]
fn a_sample_whose_gradient_is_not_finite_is_dropped_where_that_is_wanted() {
    let editor = editor();
    let (mut config, groups, state) = one_gradient_too_large(&editor);
    config.learner.not_finite = NotFinite::Drop;
    let alone = on_ranks_from(1, &groups, &config, &state)
        .remove(0)
        .unwrap();
    assert_eq!((alone.metrics.samples, alone.metrics.pairs), (18, 90));
    for world in [2, 4] {
        for output in on_ranks_from(world, &groups, &config, &state) {
            assert!(output.unwrap().state == alone.state, "{world} ranks");
        }
    }
    // As if it had never been there, but for the borders of shards. What is left is finite, though its square is not.
    let without = step(&editor, &config, &state, &without_last(&groups)).unwrap();
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-3 * b.abs();
    assert!(close(alone.metrics.grad_norm, without.metrics.grad_norm));
    assert!(close(alone.metrics.loss, without.metrics.loss));
    assert!(f64::from(f32::MAX).sqrt() < alone.metrics.grad_norm);
}

/// The groups without the last sample of the last: all others keep their numbers.
fn without_last(groups: &[SealedGroup]) -> Vec<SealedGroup> {
    let mut shorter = groups.to_vec();
    let last = shorter.last_mut().unwrap();
    last.advantages.pop();
    let data = last.data.as_mut().unwrap();
    data.x0 = data.x0.clone().narrow(0, 0, last.advantages.len());
    shorter
}

#[test]
fn many_that_are_not_finite_are_no_accident() {
    let editor = editor();
    let config = config_that_drops();
    let mut groups = groups(&editor);
    let data = groups[0].data.as_mut().unwrap();
    data.x0 = data.x0.clone().mul_scalar(f32::NAN);
    let error = step(&editor, &config, &state(&editor, &config), &groups).unwrap_err();
    assert!(matches!(error, StepError::NotFinite { .. }), "{error}");
}

fn groups_with_advantage(editor: &Editor, advantage: f64) -> Vec<SealedGroup> {
    let mut groups = groups(editor);
    groups[0].advantages[1] = advantage;
    groups
}

#[test]
fn samples_of_an_earlier_policy_are_compared_with_that_policy() {
    let (editor, config) = (editor(), config());
    let (state, mut groups) = (state(&editor, &config), groups(&editor));
    let by_old = step(&editor, &config, &state, &groups).unwrap();
    let sampled_by = |groups: &mut Vec<SealedGroup>, flat: &[f32]| {
        let flat: Arc<[f32]> = flat.into();
        groups
            .iter_mut()
            .for_each(|g| g.sampled_by = SampledBy::Earlier(flat.clone()));
    };
    sampled_by(&mut groups, &state.old);
    assert!(step(&editor, &config, &state, &groups).unwrap().state == by_old.state);
    sampled_by(&mut groups, &state.ema);
    assert!(step(&editor, &config, &state, &groups).unwrap().state != by_old.state);
    sampled_by(&mut groups, &state.ema[1..]);
    let error = step(&editor, &config, &state, &groups).unwrap_err();
    assert!(
        matches!(
            error,
            StepError::AdapterLength {
                which: "sampling adapter",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_repeated_forward_is_left_out() {
    let (editor, config) = (editor(), config());
    let start = LearnerState::initial(state(&editor, &config).theta);
    let groups = groups(&editor);
    let skipped = step(&editor, &config, &start, &groups).unwrap();
    assert_eq!(skipped.metrics.terms.old_deviate, 0.0);
    assert_eq!(skipped.metrics.times.v_old, Duration::ZERO);
    // Another zero is another bit pattern of the same policy.
    let mut computed = start.clone();
    let zero = computed.old.iter().position(|p| *p == 0.0).unwrap();
    computed.old[zero] = -0.0;
    let computed = step(&editor, &config, &computed, &groups).unwrap().metrics;
    assert!(computed.times.v_old > Duration::ZERO && computed.terms.old_deviate < 1e-12);
    assert!((computed.grad_norm / skipped.metrics.grad_norm - 1.0).abs() < 1e-5);
}

#[test]
fn without_kl_the_base_is_never_asked() {
    let (editor, mut config) = (editor(), config());
    let (state, groups) = (state(&editor, &config), groups(&editor));
    config.learner.kl_beta = 0.0;
    let metrics = step(&editor, &config, &state, &groups).unwrap().metrics;
    assert_eq!(
        (metrics.terms.kl, metrics.times.v_ref),
        (0.0, Duration::ZERO)
    );
}

#[test]
fn an_observer_can_stop_the_iteration() {
    let (editor, config) = (editor(), config());
    let (state, groups) = (state(&editor, &config), groups(&editor));
    let iteration = iteration(&editor, &config, &groups);
    let mut stop_late = |progress: retouch_learner::step::StepProgress| {
        if progress.done > 20 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let error = train_iteration(iteration, &state, &mut Local, &mut stop_late).unwrap_err();
    assert!(matches!(error, StepError::Cancelled), "{error}");
}

#[test]
fn resuming_from_a_saved_state_changes_no_bit() {
    let (editor, config) = (editor(), config());
    let groups = groups(&editor);
    let next = |state: &LearnerState| step(&editor, &config, state, &groups).unwrap().state;
    let start = state(&editor, &config);
    let mut straight = vec![start.clone()];
    for i in 0..3 {
        straight.push(next(&straight[i]));
    }
    for stopped_after in 0..3 {
        let mut resumed = LearnerState::from_bytes(&straight[stopped_after].to_bytes()).unwrap();
        for _ in stopped_after..3 {
            resumed = next(&resumed);
        }
        assert_eq!(
            resumed.content_hash(),
            straight[3].content_hash(),
            "stopped after {stopped_after}"
        );
    }
}

/// The rewarded samples become likelier, and more so than the punished ones.
#[test]
fn training_moves_towards_what_is_rewarded() {
    let (editor, config) = (editor(), config());
    let start = LearnerState::initial(state(&editor, &config).theta);
    let mut both = group(&editor, 0, 4);
    both.advantages = vec![3.0, 3.0, -3.0, -3.0];
    let only = |first: usize| {
        let mut part = both.clone();
        part.advantages = vec![0.0; 2];
        let data = part.data.as_mut().unwrap();
        data.x0 = data.x0.clone().narrow(0, first, 2);
        [part]
    };
    // Where old and trained policy are one, the loss is the error of their predictions.
    let error = |theta: &[f32], part: &[SealedGroup]| {
        let state = LearnerState::initial(theta.to_vec());
        step(&editor, &config, &state, part)
            .unwrap()
            .metrics
            .terms
            .policy_loss
    };
    let mut trained = start.clone();
    for _ in 0..10 {
        trained = step(&editor, &config, &trained, &[both.clone()])
            .unwrap()
            .state;
    }
    let change = |part: &[SealedGroup]| error(&trained.theta, part) - error(&start.theta, part);
    let (rewarded, punished) = (change(&only(0)), change(&only(2)));
    assert!(
        rewarded < 0.0 && rewarded < punished - 0.1,
        "{rewarded} {punished}"
    );
}
