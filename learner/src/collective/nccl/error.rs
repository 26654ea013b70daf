//! What NCCL and the device beneath it complain about.

use thiserror::Error;

/// NCCL could not do something on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NcclError {
    /// The library is not there.
    #[error(
        "cannot load NCCL: {reason}; install libnccl2, or name the file libnccl.so.2 in ${}",
        super::library::VARIABLE
    )]
    NoLibrary {
        /// What the loader says.
        reason: String,
    },
    /// The library lacks what is used here.
    #[error("NCCL has version {found}, expected {oldest} or newer")]
    TooOld {
        /// Its version.
        found: u32,
        /// The oldest that will do.
        oldest: u32,
    },
    /// There is no driver.
    #[error("no CUDA driver: libcuda.so.1 is not on this machine, it comes with NVIDIA's driver")]
    NoDriver,
    /// The driver refused.
    #[error("{what} failed: {reason}")]
    Cuda {
        /// What was asked of it.
        what: &'static str,
        /// What it says.
        reason: String,
    },
    /// NCCL refused.
    #[error("{call} failed: {reason}")]
    Call {
        /// The function.
        call: &'static str,
        /// What it says.
        reason: String,
    },
    /// NCCL does not come to an end, though every rank has begun.
    #[error(
        "{what} did not end within {waited_ms} ms: the network between the GPUs, or another rank, is gone"
    )]
    Stuck {
        /// The function.
        what: &'static str,
        /// How long it was waited for.
        waited_ms: u64,
    },
}

impl NcclError {
    /// Whether this machine will say the same next time.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::NoLibrary { .. } | Self::TooOld { .. } | Self::NoDriver => true,
            Self::Cuda { what, .. } => *what == super::gpu::OPENING,
            Self::Call { .. } | Self::Stuck { .. } => false,
        }
    }
}
