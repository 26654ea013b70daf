use retouch_models::scheduler::ScheduleError;
use retouch_proto::GroupId;

use super::Culprit;
use crate::shards::BoxError;

/// Why an iteration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The observer asked to stop.
    #[error("training iteration cancelled")]
    Cancelled,
    /// A group of this rank's shards came without its samples.
    #[error("group {0} belongs to a shard of this rank, but its samples are missing")]
    MissingData(GroupId),
    /// Samples and advantages do not fit together.
    #[error("group {group} has {samples} samples and {advantages} advantages")]
    SampleCount {
        /// The group.
        group: GroupId,
        /// Samples in x0.
        samples: usize,
        /// Advantages.
        advantages: usize,
    },
    /// An adapter does not fit the model.
    #[error("{which} has {len} values, the model's adapter has {expected}")]
    AdapterLength {
        /// Which adapter.
        which: &'static str,
        /// Its length.
        len: usize,
        /// The right length.
        expected: usize,
    },
    /// An advantage is NaN or infinite.
    #[error("advantage of sample {sample} of group {group} is {value}, expected a finite number")]
    Advantage {
        /// The group.
        group: GroupId,
        /// The sample in it.
        sample: usize,
        /// The advantage.
        value: f64,
    },
    /// The loss of a pair, or its gradient, is NaN or infinite.
    #[error("{what} of sample {sample} of group {group} is not finite at timestep {timestep}")]
    NotFinite {
        /// The group.
        group: GroupId,
        /// The sample in it.
        sample: usize,
        /// Index of the timestep in the sampler's schedule.
        timestep: usize,
        /// What is not finite.
        what: Culprit,
    },
    /// The scheduler has no noise levels for the sampler's steps.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The gradient of every micro batch is finite, their sum is not.
    #[error("gradient norm is {0}, expected a finite number")]
    GradientNotFinite(f64),
    /// The sum over ranks failed.
    #[error("all-reduce failed: {0}")]
    AllReduce(#[source] BoxError),
}
