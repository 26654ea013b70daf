//! The collective of the present epoch, kept from one iteration to the next.

use std::sync::{Arc, Mutex, MutexGuard};

use retouch_proto::{
    Epoch, LeaseId,
    config::{CollectiveKind, DeviceName, LearnerConfig},
    task::CollectiveEpoch,
};
use tokio_util::sync::CancellationToken;

#[cfg(feature = "nccl")]
use crate::collective::nccl::{NcclCollective, NcclRank};
use crate::{
    collective::{
        Aborter, Collective, CollectiveError, Deadlines, Listener, Membership, Sealing,
        TcpCollective,
    },
    shards::Local,
};

/// How ranks add their gradients up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// Over sockets.
    Tcp(Sealing),
    /// Through NCCL.
    #[cfg(feature = "nccl")]
    Nccl {
        /// The number of this rank's GPU, as in `cuda:N`.
        device: usize,
    },
}

impl Way {
    /// What the run file asks for. `device` is where this rank computes; if that is not a
    /// GPU, the run file says which one sums.
    #[cfg_attr(not(feature = "nccl"), expect(unused_variables))]
    pub(super) fn of(config: &LearnerConfig, device: DeviceName) -> Result<Self, CollectiveError> {
        match config.collective {
            CollectiveKind::Tcp if config.seal_sums => Ok(Self::Tcp(Sealing::Everything)),
            CollectiveKind::Tcp => Ok(Self::Tcp(Sealing::Headers)),
            #[cfg(feature = "nccl")]
            CollectiveKind::Nccl => Ok(Self::Nccl {
                device: device
                    .card()
                    .or(config.device.first().card())
                    .unwrap_or(0)
                    .into(),
            }),
            #[cfg(not(feature = "nccl"))]
            CollectiveKind::Nccl => Err(CollectiveError::NotBuilt),
        }
    }
}

impl Way {
    fn sealing(self) -> Sealing {
        match self {
            Self::Tcp(sealing) => sealing,
            // Ranks only meet over sockets then, and wait for each other.
            #[cfg(feature = "nccl")]
            Self::Nccl { .. } => Sealing::Everything,
        }
    }
}

/// Where this rank meets the others.
#[derive(Debug)]
pub(super) struct Ranks {
    listener: Listener,
    deadlines: Deadlines,
    shards: usize,
    way: Way,
    current: Option<(Epoch, Collective)>,
    at_work: AtWork,
}

/// Whose waits an abort would end; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct AtWork(Arc<Mutex<(Option<LeaseId>, Aborter)>>);

impl AtWork {
    /// Ends the collective's waits if they are this task's.
    pub(super) fn abort(&self, lease: LeaseId) {
        let at_work = self.lock();
        if at_work.0 == Some(lease) {
            at_work.1.abort();
        }
    }

    fn begin(&self, lease: LeaseId) {
        self.lock().0 = Some(lease);
    }

    fn end(&self) {
        self.lock().0 = None;
    }

    /// A collective that is formed now is aborted by this.
    fn renew(&self) -> Aborter {
        let mut at_work = self.lock();
        at_work.1 = Aborter::default();
        at_work.1.clone()
    }

    fn lock(&self) -> MutexGuard<'_, (Option<LeaseId>, Aborter)> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Ranks {
    pub(super) fn new(
        listener: Listener,
        deadlines: Deadlines,
        shards: usize,
        way: Way,
        at_work: AtWork,
    ) -> Self {
        Self {
            listener,
            deadlines,
            shards,
            way,
            current: None,
            at_work,
        }
    }

    /// Runs one task with the collective of its epoch, which is formed if it is new.
    /// After a failure the collective is given up: the next task brings a new epoch.
    pub(super) fn with<T, E: From<CollectiveError>>(
        &mut self,
        lease: LeaseId,
        epoch: &CollectiveEpoch,
        cancel: &CancellationToken,
        work: impl FnOnce(&mut Collective) -> Result<T, E>,
    ) -> Result<T, E> {
        self.at_work.begin(lease);
        // The collective is taken out and put back only after success: one that failed has links cut in mid-frame.
        let result = self
            .join(epoch, cancel)
            .map_err(E::from)
            .and_then(|mut collective| {
                let result = work(&mut collective)?;
                self.current = Some((epoch.epoch, collective));
                Ok(result)
            });
        self.at_work.end();
        result
    }

    fn join(
        &mut self,
        epoch: &CollectiveEpoch,
        cancel: &CancellationToken,
    ) -> Result<Collective, CollectiveError> {
        match self.current.take() {
            Some((current, collective)) if current == epoch.epoch => return Ok(collective),
            Some((_, ended)) => drop(ended),
            None => {}
        }
        if epoch.world == 1 && matches!(self.way, Way::Tcp(_)) {
            return Ok(Collective::Local(Local));
        }
        let aborter = self.at_work.renew();
        // An abort before this line found nothing to end.
        if cancel.is_cancelled() {
            return Err(CollectiveError::Aborted);
        }
        tracing::info!(epoch = %epoch.epoch, rank = epoch.rank, world = epoch.world, id = ?epoch.unique_id, "meeting the other ranks");
        let membership = Membership {
            epoch: epoch.epoch.0,
            rank: epoch.rank as usize,
            peers: epoch.peers.clone(),
            shards: self.shards,
            sealing: self.way.sealing(),
        };
        match self.way {
            Way::Tcp(_) => {
                TcpCollective::join(&self.listener, membership, self.deadlines, &aborter)
                    .map(Collective::Tcp)
            }
            #[cfg(feature = "nccl")]
            Way::Nccl { device } => {
                let here = NcclRank {
                    device,
                    unique_id: epoch.unique_id.ok_or(CollectiveError::NoUniqueId {
                        epoch: epoch.epoch.0,
                    })?,
                };
                NcclCollective::join(&self.listener, membership, here, self.deadlines, &aborter)
                    .map(Collective::Nccl)
            }
        }
    }
}
