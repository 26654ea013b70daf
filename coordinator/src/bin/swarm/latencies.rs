//! How long things took: counts in steps of a tenth of a millisecond.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Longer ones are counted as this long: 10 s.
const STEPS: usize = 100_000;
const STEP_US: u128 = 100;

/// Latencies of a while, added to by many at a time.
pub(crate) struct Latencies(Vec<AtomicU64>);

/// A while in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) count: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

impl Latencies {
    pub(crate) fn new() -> Self {
        Self((0..STEPS).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn add(&self, latency: Duration) {
        let step = (latency.as_micros() / STEP_US).min(STEPS as u128 - 1) as usize;
        self.0[step].fetch_add(1, Ordering::Relaxed);
    }

    /// What was added since the last time.
    pub(crate) fn take(&self) -> Summary {
        let counts: Vec<u64> = self
            .0
            .iter()
            .map(|count| count.swap(0, Ordering::Relaxed))
            .collect();
        let count: u64 = counts.iter().sum();
        Summary {
            count,
            p50_ms: quantile_ms(&counts, count.div_ceil(2)),
            p99_ms: quantile_ms(&counts, count - count / 100),
            max_ms: quantile_ms(&counts, count),
        }
    }
}

/// The upper end of the step in which the latency of that rank is.
fn quantile_ms(counts: &[u64], rank: u64) -> f64 {
    let mut seen = 0;
    let step = counts.iter().position(|count| {
        seen += count;
        seen >= rank.max(1)
    });
    step.map_or(0.0, |step| (step + 1) as f64 / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_what_was_added() {
        let latencies = Latencies::new();
        (1..=200).for_each(|ms| latencies.add(Duration::from_millis(ms)));
        let summary = latencies.take();
        assert_eq!(summary.count, 200);
        assert!((summary.p50_ms - 100.0).abs() < 0.2, "{summary:?}");
        assert!((summary.p99_ms - 198.0).abs() < 0.2, "{summary:?}");
        assert!((summary.max_ms - 200.0).abs() < 0.2, "{summary:?}");
        assert_eq!(latencies.take().count, 0);
    }
}
