//! Signs of a run that goes wrong, by name: reported when they begin, and again when they come back.

use retouch_proto::config::AlarmConfig;
use retouch_proto::status::IterationMetrics;

use super::Machine;

impl Machine {
    /// Messages of the alarms that an iteration raised and the one before did not.
    pub(super) fn alarms(&mut self, metrics: &IterationMetrics) -> Vec<String> {
        let untrained = self.telemetry.untrained();
        self.telemetry
            .raise(alarms(&self.config.alarms, metrics, untrained))
    }
}

/// Name and message of every alarm. Unmeasured values never raise one; NaN always does. `untrained` iterations in a row
/// kept nothing, up to this one.
fn alarms(
    config: &AlarmConfig,
    metrics: &IterationMetrics,
    untrained: usize,
) -> Vec<(&'static str, String)> {
    let iteration = metrics.iteration;
    let mut found = Vec::new();
    let mut check = |name: &'static str, rings: bool, message: String| {
        if rings {
            found.push((
                name,
                format!("{name} after iteration {iteration}: {message}"),
            ));
        }
    };
    let above = |value: f64, most: f64| most > 0.0 && (value > most || value.is_nan());
    if let Some(train) = &metrics.train {
        let most = config.grad_norm_max;
        check(
            "grad_norm",
            above(train.grad_norm, most),
            format!(
                "{:.4} is above alarms.grad_norm_max = {most}",
                train.grad_norm
            ),
        );
        let most = config.kl_max;
        check(
            "kl",
            above(train.kl_div, most),
            format!("{:.6} is above alarms.kl_max = {most}", train.kl_div),
        );
    }
    let (std, least) = (metrics.reward_std_mean, config.reward_std_min);
    let below = metrics.scored > 0 && (std < least || (least > 0.0 && std.is_nan()));
    check(
        "reward_std",
        below,
        format!(
            "the rewards of a group differ by {std:.4} on average, below alarms.reward_std_min = {least}: \
             the judge may be fooled alike by all samples"
        ),
    );
    let most = config.untrained_max as usize;
    check(
        "untrained",
        most > 0 && untrained >= most,
        format!(
            "the filter has kept no group of the last {untrained} iterations (alarms.untrained_max = {most}): the \
             policy does not change"
        ),
    );
    found
}

#[cfg(test)]
mod tests {
    use retouch_proto::Iteration;
    use retouch_proto::task::TrainMetrics;

    use super::*;

    const CONFIG: AlarmConfig = AlarmConfig {
        grad_norm_max: 5.0,
        kl_max: 0.5,
        reward_std_min: 0.01,
        untrained_max: 2,
    };

    fn names(grad_norm: f64, kl_div: f64, reward_std_mean: f64) -> Vec<&'static str> {
        let train = TrainMetrics {
            grad_norm,
            kl_div,
            ..TrainMetrics::default()
        };
        let metrics = IterationMetrics {
            iteration: Iteration(7),
            scored: 4,
            reward_std_mean,
            train: Some(train),
            ..IterationMetrics::default()
        };
        let found = alarms(&CONFIG, &metrics, 0);
        found.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn each_threshold_rings_its_own_alarm() {
        assert_eq!(names(5.0, 0.5, 0.01), Vec::<&str>::new());
        assert_eq!(names(5.1, 0.5, 0.01), ["grad_norm"]);
        assert_eq!(names(1.0, 0.6, 0.01), ["kl"]);
        assert_eq!(names(1.0, 0.1, 0.009), ["reward_std"]);
        assert_eq!(
            names(f64::NAN, f64::NAN, f64::NAN),
            ["grad_norm", "kl", "reward_std"]
        );
    }

    #[test]
    fn messages_name_value_and_threshold() {
        let metrics = IterationMetrics {
            iteration: Iteration(7),
            scored: 4,
            reward_std_mean: 0.002,
            ..IterationMetrics::default()
        };
        let found = alarms(&CONFIG, &metrics, 0);
        assert_eq!(found.len(), 1, "nothing was trained: {found:?}");
        let message = &found[0].1;
        for part in [
            "reward_std after iteration 7",
            "0.0020",
            "alarms.reward_std_min = 0.01",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn iterations_that_teach_nothing_ring_once_there_are_so_many_in_a_row() {
        let metrics = IterationMetrics::default();
        let rings = |untrained| alarms(&CONFIG, &metrics, untrained).len();
        assert_eq!([0, 1, 2, 3].map(rings), [0, 0, 1, 1]);
    }

    #[test]
    fn zero_switches_an_alarm_off() {
        let off = AlarmConfig {
            grad_norm_max: 0.0,
            kl_max: 0.0,
            reward_std_min: 0.0,
            untrained_max: 0,
        };
        let train = TrainMetrics {
            grad_norm: f64::NAN,
            kl_div: 1e9,
            ..TrainMetrics::default()
        };
        let metrics = IterationMetrics {
            scored: 4,
            train: Some(train),
            ..IterationMetrics::default()
        };
        assert!(alarms(&off, &metrics, 9).is_empty());
    }
}
