//! What can go wrong between ranks, and whose fault it was.

use std::{io, net::SocketAddr};

use thiserror::Error;

/// A collective operation that did not happen.
///
/// The collective is of no more use after any of these: the next epoch forms a
/// new one.
#[derive(Debug, Error)]
pub enum CollectiveError {
    /// The address for other ranks could not be opened.
    #[error("cannot listen for other ranks on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Some rank would have nothing to add.
    #[error(
        "{world} ranks cannot share {shards} gradient shards: learner.gradient_shards must be at least the rank count"
    )]
    TooManyRanks {
        /// Ranks of the epoch.
        world: usize,
        /// Shards of the gradient.
        shards: usize,
    },
    /// A rank could not be reached in time while the epoch formed.
    #[error("rank {rank} did not join epoch {epoch} within {waited_ms} ms{}", because(.last))]
    Absent {
        /// The rank that is missing.
        rank: usize,
        /// The epoch that was to be formed.
        epoch: u64,
        /// How long it was waited for.
        waited_ms: u64,
        /// The last error of a connection to it, if one was tried.
        last: Option<io::Error>,
    },
    /// A rank says that this epoch is over.
    #[error("rank {rank} refused epoch {epoch}: it already is in epoch {newer}")]
    Outdated {
        /// The rank that refused.
        rank: usize,
        /// The epoch of this collective.
        epoch: u64,
        /// The epoch of that rank.
        newer: u64,
    },
    /// The connection to a rank broke.
    #[error("rank {rank} was lost: {source}")]
    Lost {
        /// The rank that is gone.
        rank: usize,
        /// What the socket said.
        source: io::Error,
    },
    /// A rank sent or took nothing within the deadline.
    #[error("rank {rank} stalled: not a byte moved for {waited_ms} ms")]
    Stalled {
        /// The rank that is silent.
        rank: usize,
        /// The deadline that passed.
        waited_ms: u64,
    },
    /// Another rank gave up and says why.
    #[error("rank {from} gave up because of rank {culprit}")]
    GaveUp {
        /// The rank that told.
        from: usize,
        /// The rank that it blames.
        culprit: usize,
    },
    /// A rank is doing something else than this one.
    #[error("rank {rank} disagrees: it sends {found}, expected {expected}")]
    Disagrees {
        /// That rank.
        rank: usize,
        /// What it sent.
        found: String,
        /// What this rank is at.
        expected: String,
    },
    /// NCCL, the driver or the device.
    #[cfg(feature = "nccl")]
    #[error("rank {rank} on {device}: {source}")]
    Nccl {
        /// This rank.
        rank: usize,
        /// Its device.
        device: String,
        /// What is wrong with it.
        source: super::nccl::NcclError,
    },
    /// Two ranks are on one card, where NCCL would hang.
    #[cfg(feature = "nccl")]
    #[error(
        "rank {rank} is on the card of rank {other}: ranks that sum through NCCL need a card each (learner.device, \
         --device)"
    )]
    SharedCard {
        /// The later of the two.
        rank: usize,
        /// The one that has the card.
        other: usize,
    },
    /// The epoch's task does not say by what its ranks find each other.
    #[error("epoch {epoch} came without the unique id that rank 0 mints for NCCL")]
    NoUniqueId {
        /// The epoch.
        epoch: u64,
    },
    /// The program was built without NCCL.
    #[error(
        "learner.collective = \"nccl\" needs a build with the cuda feature (cargo build --features cuda)"
    )]
    NotBuilt,
    /// This process was told to stop.
    #[error("aborted here")]
    Aborted,
}

impl CollectiveError {
    /// The rank that caused the failure; none if it was this process's own doing.
    pub fn culprit(&self) -> Option<usize> {
        match self {
            Self::Listen { .. }
            | Self::TooManyRanks { .. }
            | Self::NoUniqueId { .. }
            | Self::NotBuilt
            | Self::Aborted
            | Self::Outdated { .. } => None,
            Self::Absent { rank, .. }
            | Self::Lost { rank, .. }
            | Self::Stalled { rank, .. }
            | Self::Disagrees { rank, .. } => Some(*rank),
            #[cfg(feature = "nccl")]
            Self::Nccl { rank, .. } | Self::SharedCard { rank, .. } => Some(*rank),
            Self::GaveUp { culprit, .. } => Some(*culprit),
        }
    }

    /// Whether another attempt would meet the same: then the run can only end.
    pub fn is_lasting(&self) -> bool {
        match self {
            #[cfg(feature = "nccl")]
            Self::Nccl { source, .. } => source.is_lasting(),
            #[cfg(feature = "nccl")]
            Self::SharedCard { .. } => true,
            Self::TooManyRanks { .. } | Self::NoUniqueId { .. } | Self::NotBuilt => true,
            _ => false,
        }
    }
}

fn because(last: &Option<io::Error>) -> String {
    last.as_ref().map(|e| format!(": {e}")).unwrap_or_default()
}
