//! Signs of a run that goes wrong, by name: reported when they begin, and again when they come back.

use retouch_proto::config::AlarmConfig;
use retouch_proto::status::IterationMetrics;

use super::Machine;
use super::telemetry::Trend;

impl Machine {
    /// Messages of the alarms that an iteration raised and the one before did not.
    pub(super) fn alarms(&mut self, metrics: &IterationMetrics) -> Vec<String> {
        let terms = self.config.reward.terms.iter();
        let watched = terms.filter(|term| term.is_watched());
        let past = Past {
            untrained: self.telemetry.untrained(),
            watched: watched
                .filter_map(|term| Some((term.name.clone(), self.telemetry.trend(&term.name)?)))
                .collect(),
        };
        let found = alarms(&self.config.alarms, metrics, &past);
        self.telemetry.raise(found)
    }
}

/// What the iterations up to this one say together.
#[derive(Default)]
struct Past {
    /// Those in a row, up to this one, that kept nothing.
    untrained: usize,
    /// Where the scores of watched terms go.
    watched: Vec<(String, Trend)>,
}

/// Name and message of every alarm. Unmeasured values never raise one; NaN always does.
fn alarms(
    config: &AlarmConfig,
    metrics: &IterationMetrics,
    past: &Past,
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
    let (most, untrained) = (config.untrained_max as usize, past.untrained);
    check(
        "untrained",
        most > 0 && untrained >= most,
        format!(
            "the filter has kept no group of the last {untrained} iterations (alarms.untrained_max = {most}): the \
             policy does not change"
        ),
    );
    let most = config.watched_fall_max;
    let fallen = |(_, trend): &&(String, Trend)| above(trend.best - trend.now, most);
    if let Some((term, Trend { now, best })) = past.watched.iter().find(fallen) {
        check(
            "watched",
            true,
            format!(
                "the watched term {term} gives {now:.3} where it gave {best:.3} before, a fall of more than \
                 alarms.watched_fall_max = {most}: the policy may please the judges that it learns from and nobody else; \
                 look at the pictures in samples/"
            ),
        );
    }
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
        watched_fall_max: 0.1,
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
        let found = alarms(&CONFIG, &metrics, &Past::default());
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
        let found = alarms(&CONFIG, &metrics, &Past::default());
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
        let rings = |untrained| {
            let watched = Vec::new();
            alarms(&CONFIG, &metrics, &Past { untrained, watched }).len()
        };
        assert_eq!([0, 1, 2, 3].map(rings), [0, 0, 1, 1]);
    }

    #[test]
    fn zero_switches_an_alarm_off() {
        let off = AlarmConfig {
            grad_norm_max: 0.0,
            kl_max: 0.0,
            reward_std_min: 0.0,
            untrained_max: 0,
            watched_fall_max: 0.0,
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
        let past = Past {
            untrained: 9,
            watched: watched(0.9, 0.1),
        };
        assert!(alarms(&off, &metrics, &past).is_empty());
    }

    fn watched(best: f64, now: f64) -> Vec<(String, Trend)> {
        vec![("strict".to_owned(), Trend { now, best })]
    }

    #[test]
    fn a_watched_term_that_falls_is_named() {
        let found = |best, now| {
            let watched = watched(best, now);
            let past = Past {
                untrained: 0,
                watched,
            };
            alarms(&CONFIG, &IterationMetrics::default(), &past)
        };
        assert!(found(0.5, 0.41).is_empty());
        let (name, message) = &found(0.5, 0.39)[0];
        assert_eq!(*name, "watched");
        for part in [
            "strict gives 0.390",
            "0.500",
            "alarms.watched_fall_max = 0.1",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }
}
