//! The sum of gradients through NCCL, on GPUs.
//!
//! Ranks meet over sockets first, as everywhere: that names a rank which does not
//! come, and before every operation it names one which is lost or late. NCCL, which
//! knows of no names and no deadlines, then only has to move bytes: it is started
//! without blocking, asked for errors while it works, and aborted when its time is up.
//!
//! In reading order: [`library`] finds NCCL's functions at run time, [`communicator`]
//! is one epoch's use of them, [`gpu`] holds the flat gradient buffer, [`meet`] finds ranks
//! that are on one card, [`NcclCollective`] puts them together.

mod communicator;
mod error;
mod gpu;
mod library;
mod meet;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

#[cfg(feature = "cuda")]
use burn::tensor::Tensor;
#[cfg(feature = "cuda")]
use retouch_models::device::memory::{self, CardMemory, NotInPlace};
use retouch_proto::task::UniqueId;

use self::{
    communicator::{Buffer, Communicator},
    gpu::Gpu,
    library::Library,
};
use super::{
    error::CollectiveError,
    listener::Listener,
    tcp::{Aborter, Deadlines, Membership, TcpCollective},
};
use crate::shards::tree_sum;

pub use error::NcclError;

/// How often NCCL and the device are asked how far they are.
const POLL: Duration = Duration::from_micros(100);
/// How long NCCL may take to connect ranks that have met already.
const MEETING: Duration = Duration::from_secs(60);

/// Where this rank computes and by what it finds the others.
#[derive(Clone, Copy, Debug)]
pub struct NcclRank {
    /// Number of the GPU, as in `cuda:N`.
    pub device: usize,
    /// What rank 0 minted for the epoch.
    pub unique_id: UniqueId,
}

/// The ranks of one epoch on their GPUs.
#[derive(Debug)]
pub struct NcclCollective {
    control: TcpCollective,
    communicator: Communicator,
    gpu: Gpu,
    /// How long NCCL may take once all ranks have begun.
    patience: Duration,
    stopped: Arc<AtomicBool>,
}

/// The library that this process has loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its version as a number, 23007 for 2.30.7.
    pub version: u32,
    /// Its file, where the system tells.
    pub path: Option<PathBuf>,
}

/// Loads NCCL and says which it is.
///
/// # Errors
///
/// If NCCL can't be loaded or is too old.
pub fn find() -> Result<Found, NcclError> {
    let library = Library::get()?;
    Ok(Found {
        version: library.version,
        path: library::path(),
    })
}

/// Makes what the ranks of a new epoch find each other by. This process has to be the
/// epoch's rank 0, and needs no device for it.
///
/// # Errors
///
/// If NCCL can't be loaded, or finds no network interface (`NCCL_SOCKET_IFNAME`).
pub fn mint() -> Result<UniqueId, NcclError> {
    communicator::mint(Library::get()?)
}

impl NcclCollective {
    /// Meets the other ranks of an epoch.
    ///
    /// # Errors
    ///
    /// If this rank has no NCCL, driver or device; if a rank does not come in time or
    /// refuses; on [`Aborter::abort`].
    pub fn join(
        listener: &Listener,
        membership: Membership,
        here: NcclRank,
        deadlines: Deadlines,
        aborter: &Aborter,
    ) -> Result<Self, CollectiveError> {
        let (rank, world) = (membership.rank, membership.peers.len());
        let failed = |source| failed(rank, here.device, source);
        let library = Library::get().map_err(failed)?;
        // Before anybody is met: who has no device says so at once.
        let gpu = Gpu::open(here.device).map_err(failed)?;
        let identity = gpu.identity().map_err(failed)?;
        let mut control = TcpCollective::join(listener, membership, deadlines, aborter)?;
        let identities = meet::identities(&mut control, identity)?;
        if let Some((other, rank)) = meet::twins(&identities) {
            return Err(control.fail(CollectiveError::SharedCard { rank, other }));
        }
        let communicator = Communicator::start(library, &here.unique_id, rank, world)
            .map_err(|error| control.fail(failed(error)))?;
        let mut this = Self {
            control,
            communicator,
            gpu,
            patience: deadlines.stall,
            stopped: aborter.stopped(),
        };
        let patience = deadlines.join.min(MEETING);
        let met = this.wait("ncclCommInitRankConfig", patience, || Ok(true));
        met.map_err(|error| this.fail(error))?;
        Ok(this)
    }

    /// This rank, counted from zero.
    pub fn rank(&self) -> usize {
        self.control.rank()
    }

    /// How many ranks take part.
    pub fn world(&self) -> usize {
        self.control.world()
    }

    /// The sum over all shards of all ranks, added in f32 in an order of NCCL's choice.
    ///
    /// # Errors
    ///
    /// If a rank is lost or late, or NCCL fails. The collective is of no more use then.
    pub fn all_reduce(&mut self, shards: Vec<Vec<f32>>) -> Result<Vec<f32>, CollectiveError> {
        self.on_device(tree_sum(shards), "ncclAllReduce", |this, buffer| {
            // SAFETY: the buffer is the device's own and stays until `wait` has seen the
            // stream come past the operation or the communicator is aborted.
            unsafe { this.communicator.all_reduce(buffer, this.gpu.stream()) }
        })
    }

    /// As [`all_reduce`](Self::all_reduce), of sums on the card that computed them, `[len]` each: they are added there, and
    /// read once.
    ///
    /// # Errors
    ///
    /// As [`all_reduce`](Self::all_reduce).
    #[cfg(feature = "cuda")]
    pub fn all_reduce_on_device(
        &mut self,
        shards: Vec<Tensor<1>>,
    ) -> Result<Vec<f32>, CollectiveError> {
        let Some(sum) = tree_sum_on_device(shards) else {
            return Ok(Vec::new());
        };
        self.barrier()?;
        let summed = memory::in_place(&sum, |CardMemory { pointer, elements }| {
            let buffer = Buffer { pointer, elements };
            self.carry_out(buffer, "ncclAllReduce", |this, buffer| {
                // SAFETY: the memory is held until `carry_out` has seen the stream come past the operation; if it has not,
                // the communicator is aborted below, and the tensor is alive until then.
                unsafe { this.communicator.all_reduce(buffer, this.gpu.stream()) }
            })
        });
        match summed {
            Ok(Ok(())) => Ok(values(sum)),
            Ok(Err(error)) => Err(self.fail(error)),
            // Learners that compute elsewhere sum on a card all the same.
            Err(NotInPlace::Elsewhere) => self.all_reduce(vec![values(sum)]),
            Err(NotInPlace::Device(reason)) => {
                let what = "reading the gradient's memory";
                let error = failed(
                    self.rank(),
                    self.gpu.index(),
                    NcclError::Cuda { what, reason },
                );
                Err(self.fail(error))
            }
        }
    }

    /// Gives every rank the values of rank `root`; all pass as many.
    ///
    /// # Errors
    ///
    /// As [`all_reduce`](Self::all_reduce).
    pub fn broadcast(
        &mut self,
        root: usize,
        values: Vec<f32>,
    ) -> Result<Vec<f32>, CollectiveError> {
        self.on_device(values, "ncclBroadcast", |this, buffer| {
            // SAFETY: as in `all_reduce`.
            unsafe { this.communicator.broadcast(buffer, root, this.gpu.stream()) }
        })
    }

    /// Waits until every rank has come here.
    ///
    /// # Errors
    ///
    /// If a rank is lost or late.
    pub fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.control.barrier()
    }

    /// Does one operation in place on the flat buffer with these values.
    fn on_device(
        &mut self,
        mut values: Vec<f32>,
        what: &'static str,
        start: impl FnOnce(&Self, Buffer) -> Result<(), NcclError>,
    ) -> Result<Vec<f32>, CollectiveError> {
        self.barrier()?;
        let result = self.operate(&mut values, what, start);
        result.map_err(|error| self.fail(error))?;
        Ok(values)
    }

    fn operate(
        &mut self,
        values: &mut [f32],
        what: &'static str,
        start: impl FnOnce(&Self, Buffer) -> Result<(), NcclError>,
    ) -> Result<(), CollectiveError> {
        let (rank, device) = (self.rank(), self.gpu.index());
        let failed = |source| failed(rank, device, source);
        let buffer = self.gpu.upload(values).map_err(failed)?;
        self.carry_out(buffer, what, start)?;
        self.gpu.download(values).map_err(failed)
    }

    /// Has NCCL do one operation on a buffer and waits until that is done.
    fn carry_out(
        &self,
        buffer: Buffer,
        what: &'static str,
        start: impl FnOnce(&Self, Buffer) -> Result<(), NcclError>,
    ) -> Result<(), CollectiveError> {
        let failed = |source| failed(self.rank(), self.gpu.index(), source);
        self.gpu.enter().map_err(failed)?;
        start(self, buffer).map_err(failed)?;
        // A mark may only follow once NCCL has put its work on the stream.
        self.wait(what, self.patience, || Ok(true))?;
        let mark = self.gpu.mark().map_err(failed)?;
        self.wait(what, self.patience, || gpu::is_past(&mark))
    }

    /// Waits until NCCL has started what it was given and `done` holds.
    fn wait(
        &self,
        what: &'static str,
        patience: Duration,
        done: impl Fn() -> Result<bool, NcclError>,
    ) -> Result<(), CollectiveError> {
        let failed = |source| failed(self.rank(), self.gpu.index(), source);
        let begin = Instant::now();
        loop {
            if self.stopped.load(Ordering::Acquire) {
                return Err(CollectiveError::Aborted);
            }
            if self.communicator.is_ready().map_err(failed)? && done().map_err(failed)? {
                return Ok(());
            }
            if begin.elapsed() >= patience {
                let waited_ms = patience.as_millis() as u64;
                return Err(failed(NcclError::Stuck { what, waited_ms }));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Ends NCCL's work, which would wait for ever, and tells the other ranks.
    fn fail(&mut self, error: CollectiveError) -> CollectiveError {
        self.communicator.abort();
        self.control.fail(error)
    }
}

/// As [`tree_sum`], on a device.
#[cfg(feature = "cuda")]
fn tree_sum_on_device(mut parts: Vec<Tensor<1>>) -> Option<Tensor<1>> {
    while parts.len() > 1 {
        let mut level = Vec::with_capacity(parts.len().div_ceil(2));
        let mut rest = parts.into_iter();
        while let Some(left) = rest.next() {
            level.push(match rest.next() {
                Some(right) => left + right,
                None => left,
            });
        }
        parts = level;
    }
    parts.pop()
}

#[cfg(feature = "cuda")]
fn values(tensor: Tensor<1>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>();
    data.try_into_vec()
        .expect("the values were just converted to f32")
}

fn failed(rank: usize, device: usize, source: NcclError) -> CollectiveError {
    CollectiveError::Nccl {
        rank,
        device: format!("cuda:{device}"),
        source,
    }
}

#[cfg(test)]
mod tests;
