//! How fast the old policy and the EMA follow the trained one.
//!
//! `step` counts the optimizer update just made, so it starts at 1.

use std::fmt;
use std::str::FromStr;

/// How the old policy, which samples the next iteration, follows the trained one.
///
/// theta_old <- eta theta_old + (1 - eta) theta, with eta by [`eta`](Self::eta).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OldPolicySchedule {
    /// eta = min(0.001 step, 0.5).
    #[default]
    Default,
    /// eta = 0: the old policy is the trained one. Fast, then collapses.
    OnPolicy,
    /// eta = 0 for 75 steps, then 0.0075 per step up to 0.999.
    Delayed,
}

impl OldPolicySchedule {
    /// The share of itself that the old policy keeps after update `step`.
    pub fn eta(self, step: u64) -> f64 {
        match self {
            Self::Default => (0.001 * step as f64).min(0.5),
            Self::OnPolicy => 0.0,
            Self::Delayed => (0.0075 * step.saturating_sub(75) as f64).min(0.999),
        }
    }
}

/// The name of an old-policy schedule that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown old_policy {0:?}: use \"default\", \"on_policy\" or \"delayed\"")]
pub struct UnknownSchedule(String);

impl FromStr for OldPolicySchedule {
    type Err = UnknownSchedule;

    fn from_str(name: &str) -> Result<Self, UnknownSchedule> {
        match name {
            "default" => Ok(Self::Default),
            "on_policy" => Ok(Self::OnPolicy),
            "delayed" => Ok(Self::Delayed),
            other => Err(UnknownSchedule(other.to_owned())),
        }
    }
}

impl fmt::Display for OldPolicySchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::OnPolicy => "on_policy",
            Self::Delayed => "delayed",
        })
    }
}

/// The share of itself that the EMA keeps after update `step`:
/// min((1 + step) / (10 + step), `decay_max`).
pub fn ema_decay(step: u64, decay_max: f64) -> f64 {
    let step = step as f64;
    ((1.0 + step) / (10.0 + step)).min(decay_max)
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
        let schedule = OldPolicySchedule::Default;
        assert_eq!(schedule.eta(1), 0.001);
        assert_eq!(schedule.eta(500), 0.5);
        assert_eq!(schedule.eta(10_000), 0.5);
    }

    #[test]
    fn delayed_waits_for_75_steps() {
        let schedule = OldPolicySchedule::Delayed;
        assert_eq!(schedule.eta(75), 0.0);
        assert_eq!(schedule.eta(77), 0.015);
        assert_eq!(schedule.eta(1_000), 0.999);
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

    #[test]
    fn names_round_trip() {
        for name in ["default", "on_policy", "delayed"] {
            assert_eq!(name.parse::<OldPolicySchedule>().unwrap().to_string(), name);
        }
        assert!("never".parse::<OldPolicySchedule>().is_err());
    }
}
