//! How long things took.

use std::sync::Mutex;
use std::time::Duration;

/// Latencies of a while, added to by many at a time.
#[derive(Default)]
pub(crate) struct Latencies(Mutex<Vec<Duration>>);

/// A while in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

impl Latencies {
    pub(crate) fn add(&self, latency: Duration) {
        self.0.lock().expect("nobody panics").push(latency);
    }

    /// What was added since the last time.
    pub(crate) fn take(&self) -> Summary {
        let mut sorted = std::mem::take(&mut *self.0.lock().expect("nobody panics"));
        sorted.sort_unstable();
        let count = sorted.len();
        // The smallest one that this share of all does not exceed.
        let quantile_ms = |share: f64| {
            let rank = (share * count as f64).ceil() as usize;
            let at = sorted.get(rank.saturating_sub(1));
            at.map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
        };
        Summary {
            count,
            p50_ms: quantile_ms(0.5),
            p99_ms: quantile_ms(0.99),
            max_ms: quantile_ms(1.0),
        }
    }
}
