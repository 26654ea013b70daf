//! What ranks find each other by, where sockets are not enough: rank 0 of a new epoch mints a
//! unique id, and every rank's task carries it.

use retouch_proto::config::CollectiveKind;
use retouch_proto::task::{MintResult, MintTask, TaskFailure};
use retouch_proto::{Epoch, LeaseId, WorkerId};

use super::Machine;
use super::leases::Work;
use super::membership::Member;
use super::training::Purpose;

/// The minting under way.
pub(super) struct Minting {
    /// The epoch whose ranks wait for it.
    epoch: Epoch,
    /// Its rank 0.
    member: Member,
    lease: LeaseId,
}

impl Machine {
    /// Whether these members can meet in this epoch now. If not, rank 0 has been asked for what
    /// they lack.
    pub(super) fn can_meet(&mut self, epoch: Epoch, members: &[Member]) -> bool {
        let alone = members.len() < 2;
        let over_sockets = self.config.learner.collective == CollectiveKind::Tcp;
        if alone || over_sockets || self.collective.unique_id().is_some() {
            return true;
        }
        let is_asked = self.minting.as_ref().is_some_and(|minting| {
            minting.epoch == epoch && self.leases.get(minting.lease).is_some()
        });
        if !is_asked {
            self.stop_minting();
            let member = members[0].clone();
            let lease = self.grant(&member.0, Work::Mint);
            self.minting = Some(Minting {
                epoch,
                member,
                lease,
            });
        }
        false
    }

    pub(super) fn mint_task(&self, lease: LeaseId) -> Option<MintTask> {
        let minting = self.minting.as_ref()?;
        (minting.lease == lease).then_some(MintTask {
            epoch: minting.epoch,
        })
    }

    pub(super) fn take_mint(&mut self, worker: &WorkerId, result: MintResult) {
        let awaited =
            |minting: &mut Minting| minting.epoch == result.epoch && minting.member.0 == *worker;
        if self.minting.take_if(awaited).is_some() {
            self.collective.set_unique_id(result.unique_id);
            self.progress();
        }
    }

    pub(super) fn mint_failed(&mut self, worker: &WorkerId, failure: TaskFailure) {
        let Some(minting) = self.minting.take_if(|minting| minting.member.0 == *worker) else {
            return;
        };
        let problem = format!("rank 0 on {worker}: {}", failure.reason);
        let purpose = match self.wants_end() {
            true => Purpose::WriteDown,
            false => Purpose::Learn,
        };
        if !failure.retryable {
            return self.step_given_up(purpose, format!("training failed: {problem}"));
        }
        self.step_failed(vec![minting.member], purpose, problem);
    }

    /// Nobody waits for the id any more.
    pub(super) fn stop_minting(&mut self) {
        if let Some(minting) = self.minting.take() {
            self.close_lease(minting.lease);
        }
    }

    /// Whether this lease is the minting under way.
    #[cfg(any(test, feature = "simulator"))]
    pub(super) fn is_minting(&self, lease: LeaseId) -> bool {
        self.minting
            .as_ref()
            .is_some_and(|minting| minting.lease == lease)
    }
}
