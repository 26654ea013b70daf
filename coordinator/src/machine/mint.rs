//! What ranks find each other by, where sockets are not enough: rank 0 of a new epoch mints a
//! unique id, and every rank's task carries it.

use retouch_proto::config::CollectiveKind;
use retouch_proto::task::{MintResult, TaskFailure};
use retouch_proto::{Epoch, WorkerId};

use super::Machine;
use super::learning::{Minting, Purpose};
use super::leases::Work;
use super::membership::Member;

impl Machine {
    /// Whether the ranks of an epoch have all they need to meet; one that is alone sums through NCCL too, so that what is
    /// wrong with it shows before there are more.
    pub(super) fn can_meet(&self) -> bool {
        let over_sockets = self.config.learner.collective == CollectiveKind::Tcp;
        over_sockets || self.learning.collective.unique_id().is_some()
    }

    /// Asks rank 0 of a new epoch for its unique id, unless it has been asked.
    pub(super) fn mint(&mut self, epoch: Epoch, members: &[Member]) {
        let is_asked = self.learning.minting.as_ref().is_some_and(|minting| {
            // Its lease is gone if rank 0 is, or took too long.
            minting.epoch == epoch && self.leases.get(minting.lease).is_some()
        });
        if is_asked {
            return;
        }
        self.stop_minting();
        let member = members[0].clone();
        let lease = self.grant(&member.0, Work::Mint);
        self.learning.minting = Some(Minting {
            epoch,
            member,
            lease,
        });
    }

    pub(super) fn take_mint(&mut self, worker: &WorkerId, result: MintResult) {
        let awaited =
            |minting: &mut Minting| minting.epoch == result.epoch && minting.member.0 == *worker;
        if self.learning.minting.take_if(awaited).is_some() {
            self.learning.collective.set_unique_id(result.unique_id);
            self.moved();
        }
    }

    pub(super) fn mint_failed(&mut self, worker: &WorkerId, failure: TaskFailure) {
        let by_worker = |minting: &mut Minting| minting.member.0 == *worker;
        let Some(minting) = self.learning.minting.take_if(by_worker) else {
            return;
        };
        let problem = format!("rank 0 on {worker}: {}", failure.reason);
        if !failure.retryable {
            return self.fail(format!("training failed: {problem}"));
        }
        self.step_failed(vec![minting.member], Purpose::Learn, problem);
    }

    /// Nobody waits for the id any more.
    pub(super) fn stop_minting(&mut self) {
        if let Some(minting) = self.learning.minting.take() {
            self.close_lease(minting.lease);
        }
    }
}
