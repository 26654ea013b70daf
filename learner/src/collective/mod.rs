//! The sum of gradient shards over all ranks.
//!
//! Whatever carries the sums, every element is added in the one binary tree over
//! shard indices of [`tree_sum`](crate::shards::tree_sum) (A9), every wait has a
//! deadline, and a failure names the rank that caused it (A7).
//!
//! Two ways: [`TcpCollective`] on CPUs, `NcclCollective` (with the feature `nccl`, which
//! `cuda` implies) on GPUs, where NCCL chooses the order of sums.
//!
//! Over TCP, ranks introduce themselves by their certificates, and every frame carries a tag that only
//! the other rank could make (`retouch_credentials::handshake` says why that and not TLS throughout). Where
//! the network can be trusted, [`Sealing::Headers`] leaves the gradients out of the tags.
//!
//! In reading order: [`Listener`] accepts peers for the life of a process,
//! [`TcpCollective::join`] forms one epoch's collective, a `Link` carries
//! messages to one peer, `plan` says who sends what to whom.

mod error;
mod halving;
mod hello;
mod link;
mod listener;
#[cfg(feature = "nccl")]
pub mod nccl;
mod plan;
mod scatter;
mod seal;
mod tcp;

pub use error::CollectiveError;
pub use listener::Listener;
pub use seal::Sealing;
pub use tcp::{Aborter, Deadlines, Membership, TcpCollective};

use burn::tensor::Tensor;

use crate::metrics::host;
use crate::shards::{BoxError, Local, ShardReduce};

/// The ways of adding gradients over ranks.
#[derive(Debug)]
pub enum Collective {
    /// One rank holds all shards.
    Local(Local),
    /// Plain sockets; bit-identical for every rank count.
    Tcp(TcpCollective),
    /// GPU to GPU.
    #[cfg(feature = "nccl")]
    Nccl(nccl::NcclCollective),
}

impl Collective {
    /// Gives every rank the values of rank `root`; all pass as many.
    ///
    /// # Errors
    ///
    /// If a rank is lost or stalls.
    pub fn broadcast(
        &mut self,
        root: usize,
        values: Vec<f32>,
    ) -> Result<Vec<f32>, CollectiveError> {
        match self {
            Self::Local(_) => Ok(values),
            Self::Tcp(tcp) => tcp.broadcast(root, values),
            #[cfg(feature = "nccl")]
            Self::Nccl(nccl) => nccl.broadcast(root, values),
        }
    }

    /// Waits until every rank has come here.
    ///
    /// # Errors
    ///
    /// If a rank is lost or stalls.
    pub fn barrier(&mut self) -> Result<(), CollectiveError> {
        match self {
            Self::Local(_) => Ok(()),
            Self::Tcp(tcp) => tcp.barrier(),
            #[cfg(feature = "nccl")]
            Self::Nccl(nccl) => nccl.barrier(),
        }
    }
}

impl ShardReduce for Collective {
    fn rank(&self) -> usize {
        match self {
            Self::Local(local) => local.rank(),
            Self::Tcp(tcp) => tcp.rank(),
            #[cfg(feature = "nccl")]
            Self::Nccl(nccl) => nccl.rank(),
        }
    }

    fn world(&self) -> usize {
        match self {
            Self::Local(local) => local.world(),
            Self::Tcp(tcp) => tcp.world(),
            #[cfg(feature = "nccl")]
            Self::Nccl(nccl) => nccl.world(),
        }
    }

    fn all_reduce(&mut self, shards: Vec<Vec<f32>>) -> Result<Vec<f32>, BoxError> {
        match self {
            Self::Local(local) => local.all_reduce(shards),
            Self::Tcp(tcp) => Ok(tcp.all_reduce(shards)?),
            #[cfg(feature = "nccl")]
            Self::Nccl(nccl) => Ok(nccl.all_reduce(shards)?),
        }
    }

    fn all_reduce_on_device(&mut self, shards: Vec<Tensor<1>>) -> Result<Vec<f32>, BoxError> {
        match self {
            Self::Local(local) => local.all_reduce_on_device(shards),
            #[cfg(feature = "cuda")]
            Self::Nccl(nccl) => Ok(nccl.all_reduce_on_device(shards)?),
            other => other.all_reduce(shards.into_iter().map(host).collect()),
        }
    }
}

#[cfg(test)]
mod tests;
