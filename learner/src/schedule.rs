//! What changes from update to update: the learning rate, and how fast the old policy and the EMA follow the
//! trained one.
//!
//! `step` counts the optimizer update just made, so it starts at 1.

use retouch_proto::config::{LearnerConfig, OldPolicy};

use crate::adamw::AdamWConfig;

/// One optimizer update, with the schedules' values at its step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// The optimizer.
    pub adamw: AdamWConfig,
    /// Longest gradient that is applied as it is.
    pub max_grad_norm: f64,
    /// Share of itself that the old policy keeps.
    pub eta: f64,
    /// Share of itself that the EMA keeps.
    pub ema_decay: f64,
}

impl Update {
    /// Update number `step` of a run with these settings.
    pub fn at(learner: &LearnerConfig, step: u64) -> Self {
        Self {
            adamw: AdamWConfig {
                learning_rate: warm_up(
                    learner.learning_rate,
                    step,
                    learner.warmup_iterations.into(),
                ),
                beta1: learner.adam_beta1,
                beta2: learner.adam_beta2,
                epsilon: learner.adam_epsilon,
                weight_decay: learner.weight_decay,
            },
            max_grad_norm: learner.max_grad_norm,
            eta: eta(learner.old_policy, step),
            ema_decay: ema_decay(step, learner.ema_decay_max),
        }
    }
}

/// eta of theta_old <- eta theta_old + (1 - eta) theta: the share of itself that the
/// old policy, which samples the next iteration, keeps after update `step`.
pub fn eta(schedule: OldPolicy, step: u64) -> f64 {
    match schedule {
        OldPolicy::Default => (0.001 * step as f64).min(0.5),
        OldPolicy::OnPolicy => 0.0,
        OldPolicy::Delayed => (0.0075 * step.saturating_sub(75) as f64).min(0.999),
    }
}

/// The share of itself that the EMA keeps after update `step`:
/// min((1 + step) / (10 + step), `decay_max`).
pub fn ema_decay(step: u64, decay_max: f64) -> f64 {
    let step = step as f64;
    ((1.0 + step) / (10.0 + step)).min(decay_max)
}

/// The learning rate of update `step`: grows evenly to its full value in update `warmup_steps`.
pub fn warm_up(learning_rate: f64, step: u64, warmup_steps: u64) -> f64 {
    if step >= warmup_steps {
        return learning_rate;
    }
    learning_rate * step as f64 / warmup_steps as f64
}

/// `average <- keep average + (1 - keep) target`, element by element.
///
/// # Panics
///
/// If the lengths differ.
pub fn follow(average: &mut [f32], target: &[f32], keep: f64) {
    assert_eq!(
        average.len(),
        target.len(),
        "a policy and its average have one length"
    );
    let (keep, give) = (keep as f32, (1.0 - keep) as f32);
    for (a, t) in average.iter_mut().zip(target) {
        *a = *a * keep + *t * give;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_starts_at_a_thousandth_and_stops_at_half() {
        let eta = |step| eta(OldPolicy::Default, step);
        assert_eq!(eta(1), 0.001);
        assert_eq!(eta(500), 0.5);
        assert_eq!(eta(10_000), 0.5);
    }

    #[test]
    fn delayed_waits_for_75_steps() {
        let eta = |step| eta(OldPolicy::Delayed, step);
        assert_eq!(eta(75), 0.0);
        assert_eq!(eta(77), 0.015);
        assert_eq!(eta(1_000), 0.999);
    }

    #[test]
    fn the_learning_rate_grows_evenly_and_then_stays() {
        let rates = [1, 2, 4, 5, 100].map(|step| warm_up(0.4, step, 4));
        assert_eq!(rates, [0.1, 0.2, 0.4, 0.4, 0.4]);
        assert_eq!(warm_up(0.4, 1, 0), 0.4);
    }

    #[test]
    fn ema_starts_at_two_elevenths() {
        assert_eq!(ema_decay(1, 0.9), 2.0 / 11.0);
        assert_eq!(ema_decay(1_000, 0.9), 0.9);
    }

    #[test]
    fn an_average_that_keeps_nothing_is_the_target() {
        let mut average = vec![1.0, 2.0];
        follow(&mut average, &[0.1, -0.7], 0.0);
        assert_eq!(average, vec![0.1, -0.7]);
    }
}
