//! What people see.

use retouch_proto::status::{PolicyStatus, Rates, RunStatus, Stage, WorkerStatus};
use retouch_proto::{Iteration, WorkerId};

use super::Machine;
use super::learning::Purpose;
use super::leases::Work;
use super::record::Policy;
use super::workers::Worker;

impl Machine {
    /// The whole view.
    pub fn status(&self, now_ms: u64) -> RunStatus {
        let committed = self.progress.committed().iteration;
        let next = self.open.get(self.progress.next());
        let workers = self.workers.iter();
        RunStatus {
            run: self.config.name.clone(),
            state: self.state(),
            reason: self.phase.failure().cloned(),
            iteration: Iteration(committed.next().0.min(self.config.iterations)),
            committed,
            checkpointed: self.progress.checkpoint().committed.iteration,
            checkpoint_pending: self.learning.is_checkpoint_asked(),
            iterations: self.config.iterations,
            stage: self.stage(),
            groups: next.map(|open| open.counts()).unwrap_or_default(),
            workers: workers
                .map(|(id, worker)| self.worker_status(id, worker, now_ms))
                .collect(),
            version: self.progress.policy().hash().map(|hash| hash.to_string()),
            rates: self.rates(now_ms),
            history: self.telemetry.history().cloned().collect(),
            totals: self.telemetry.totals,
            eta_s: self.eta_s(now_ms),
            uptime_s: self.telemetry.uptime_ms(now_ms) as f64 / 1e3,
            stalls: self.stalls(now_ms),
        }
    }

    fn stage(&self) -> Stage {
        match self.learning.training() {
            _ if self.is_over() => Stage::Idle,
            Some(training) if training.purpose == Purpose::WriteDown => Stage::Checkpointing,
            Some(_) => Stage::Training,
            None => Stage::Collecting,
        }
    }

    fn worker_status(&self, id: &WorkerId, worker: &Worker, now_ms: u64) -> WorkerStatus {
        let works = worker
            .leases
            .iter()
            .filter_map(|lease| self.leases.get(*lease));
        let groups = works.filter_map(|lease| match lease.work {
            Work::Rollout(group) | Work::Score(group) => Some(group),
            Work::Train | Work::Mint => None,
        });
        WorkerStatus {
            id: id.clone(),
            role: worker.role,
            generation: worker.generation,
            state: worker.presence,
            device: worker.device.clone(),
            blobs: self.workers.blob_address(id),
            policy: worker.policy.map(policy_status),
            slots: worker.slots,
            busy: worker.leases.len() as u32,
            groups: groups.collect(),
            last_seen_ms: now_ms.saturating_sub(worker.last_seen_ms),
            done: worker.done,
            failed: worker.failed,
        }
    }

    fn rates(&self, now_ms: u64) -> Rates {
        let [samples_per_s, scores_per_s] = self.telemetry.per_s(now_ms);
        let iteration_s = self.telemetry.iteration_s();
        Rates {
            samples_per_s,
            scores_per_s,
            iterations_per_h: iteration_s.map_or(0.0, |seconds| 3600.0 / seconds),
        }
    }

    fn eta_s(&self, now_ms: u64) -> Option<f64> {
        let committed = self.progress.committed().iteration;
        let left = self.config.iterations.saturating_sub(committed.0);
        let next = self.open.get(committed.next());
        let spent_s = next.map_or(0.0, |open| {
            now_ms.saturating_sub(open.opened_ms) as f64 / 1e3
        });
        let all_s = self.telemetry.iteration_s()? * f64::from(left);
        Some(if self.is_over() {
            0.0
        } else {
            (all_s - spent_s).max(0.0)
        })
    }
}

fn policy_status(policy: Policy) -> PolicyStatus {
    PolicyStatus {
        iteration: policy.iteration,
        version: policy.hash().map(|hash| hash.to_string()),
    }
}
