//! The sum of gradient shards over all ranks.
//!
//! Whatever carries the sums, every element is added in the one binary tree over
//! shard indices of [`tree_sum`](crate::shards::tree_sum) (A9), every wait has a
//! deadline, and a failure names the rank that caused it (A7).
//!
//! Ranks introduce themselves by their certificates, and every frame carries a tag that only the other
//! rank could make (`retouch_credentials::handshake` says why that and not TLS throughout).
//!
//! In reading order: [`Listener`] accepts peers for the life of a process,
//! [`TcpCollective::join`] forms one epoch's collective, a `Link` carries
//! messages to one peer, `plan` says who sends what to whom.

mod error;
mod halving;
mod hello;
mod link;
mod listener;
mod plan;
mod scatter;
mod seal;
mod tcp;

pub use error::CollectiveError;
pub use listener::Listener;
pub use tcp::{Aborter, Deadlines, Membership, TcpCollective};

use crate::shards::{BoxError, Local, ShardReduce};

/// The ways of adding gradients over ranks.
#[derive(Debug)]
pub enum Collective {
    /// One rank holds all shards.
    Local(Local),
    /// Plain sockets; bit-identical for every rank count.
    Tcp(TcpCollective),
}

impl ShardReduce for Collective {
    fn rank(&self) -> usize {
        match self {
            Self::Local(local) => local.rank(),
            Self::Tcp(tcp) => tcp.rank(),
        }
    }

    fn world(&self) -> usize {
        match self {
            Self::Local(local) => local.world(),
            Self::Tcp(tcp) => tcp.world(),
        }
    }

    fn all_reduce(&mut self, shards: Vec<Vec<f32>>) -> Result<Vec<f32>, BoxError> {
        match self {
            Self::Local(local) => local.all_reduce(shards),
            Self::Tcp(tcp) => Ok(tcp.all_reduce(shards)?),
        }
    }
}

#[cfg(test)]
mod tests;
