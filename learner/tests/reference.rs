//! The policy from which the KL term measures.

mod common;

use std::ops::ControlFlow;

use common::{config, editor, group, iteration, state};
use retouch_learner::shards::Local;
use retouch_learner::step::{SealedIteration, train_iteration};

#[test]
fn the_reference_is_what_the_kl_term_measures_from() {
    let (editor, mut config) = (editor(), config());
    config.learner.kl_beta = 0.5;
    let groups = [group(&editor, 0, 4)];
    let mut state = state(&editor, &config);
    // The trained policy is another one than the base model.
    state.theta = state.old.clone();
    let other = state.ema.clone();
    let iterate = |reference: Option<&[f32]>| {
        let iteration = SealedIteration {
            reference,
            ..iteration(&editor, &config, &groups)
        };
        train_iteration(iteration, &state, &mut Local, &mut |_| {
            ControlFlow::Continue(())
        })
    };
    let kl = |reference| iterate(reference).unwrap().metrics.terms.kl;
    assert_eq!(kl(Some(&state.theta)), 0.0);
    let (base, other_kl) = (kl(None), kl(Some(&other)));
    assert!(
        base > 0.0 && other_kl > 0.0 && base != other_kl,
        "{base} {other_kl}"
    );
    let next = |reference| iterate(reference).unwrap().state;
    assert_ne!(next(None), next(Some(&other)));
    let error = iterate(Some(&other[1..])).unwrap_err().to_string();
    assert!(error.contains("reference adapter"), "{error}");
}
