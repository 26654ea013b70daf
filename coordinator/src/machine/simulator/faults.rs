//! How much goes wrong, and until when.

use super::random::Random;

/// Probabilities and rates of one simulated run.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// Nothing goes wrong by itself after this time.
    pub(super) until_ms: u64,
    /// Per message.
    pub(super) lost: f64,
    /// Per message.
    pub(super) doubled: f64,
    /// Longest delay of a message.
    pub(super) latency_ms_max: u64,
    /// Mean time between crashes of some worker; 0 is never.
    pub(super) worker_crash_ms: u64,
    /// Mean time between crashes of the coordinator; 0 is never.
    pub(super) coordinator_crash_ms: u64,
    /// Per task.
    pub(super) task_fails: f64,
    /// Per task.
    pub(super) task_hangs: f64,
    /// Mean time between losses of some worker's blob; 0 is never.
    pub(super) blob_loss_ms: u64,
    /// Whether crashed learners may stay away.
    pub(super) learners_vanish: bool,
    /// Whether some workers compute other bits than others.
    pub(super) other_devices: bool,
    /// Mean time between commands of a person; 0 is never.
    pub(super) command_ms: u64,
}

impl Faults {
    /// Nothing goes wrong.
    pub(super) fn none() -> Self {
        Self {
            latency_ms_max: 5,
            ..Self::default()
        }
    }

    /// Some things go wrong, different ones for each seed.
    pub(super) fn some(random: &mut Random) -> Self {
        let mut rarely = |probability: f64| if random.chance(0.5) { probability } else { 0.0 };
        let (lost, doubled) = (rarely(0.05), rarely(0.05));
        let (task_fails, task_hangs) = (rarely(0.02), rarely(0.005));
        let mut every = |ms: u64| if random.chance(0.5) { ms } else { 0 };
        let (worker_crash_ms, coordinator_crash_ms) = (every(4_000), every(8_000));
        let (blob_loss_ms, command_ms) = (every(3_000), every(10_000));
        Self {
            until_ms: 60_000,
            lost,
            doubled,
            latency_ms_max: if random.chance(0.5) { 20 } else { 1_500 },
            worker_crash_ms,
            coordinator_crash_ms,
            task_fails,
            task_hangs,
            blob_loss_ms,
            learners_vanish: random.chance(0.1),
            other_devices: random.chance(0.05),
            command_ms,
        }
    }

    /// Only what cannot change the result, however bad.
    pub(super) fn harmless(random: &mut Random) -> Self {
        Self {
            other_devices: false,
            task_fails: 0.0,
            task_hangs: 0.0,
            ..Self::some(random)
        }
    }
}
