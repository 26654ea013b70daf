//! What people see.

use std::collections::VecDeque;

use retouch_proto::status::{PolicyStatus, Rates, RunStatus, Stage, WorkerStatus};
use retouch_proto::{Iteration, WorkerId};

use super::Machine;
use super::leases::Work;
use super::record::Policy;
use super::training::Purpose;
use super::workers::Worker;

/// Rates are over this much of the past.
const WINDOW_MS: u64 = 60_000;
/// Iterations that the estimate of the remaining time looks at.
const ETA_ITERATIONS: usize = 10;

/// Samples and scores of the last while.
#[derive(Default)]
pub(super) struct Throughput {
    sampled: Window,
    scored: Window,
}

#[derive(Default)]
struct Window {
    counts: VecDeque<(u64, usize)>,
}

impl Throughput {
    /// So many candidates were sampled.
    pub(super) fn sampled(&mut self, now_ms: u64, count: usize) {
        self.sampled.add(now_ms, count);
    }

    /// So many candidates were scored.
    pub(super) fn scored(&mut self, now_ms: u64, count: usize) {
        self.scored.add(now_ms, count);
    }
}

impl Window {
    fn add(&mut self, now_ms: u64, count: usize) {
        self.counts.push_back((now_ms, count));
        while self
            .counts
            .front()
            .is_some_and(|(at_ms, _)| at_ms + WINDOW_MS < now_ms)
        {
            self.counts.pop_front();
        }
    }

    fn per_s(&self, now_ms: u64, uptime_ms: u64) -> f64 {
        let recent = self
            .counts
            .iter()
            .filter(|(at_ms, _)| at_ms + WINDOW_MS >= now_ms);
        let count: usize = recent.map(|(_, count)| count).sum();
        count as f64 * 1e3 / uptime_ms.clamp(1, WINDOW_MS) as f64
    }
}

impl Machine {
    /// The whole view.
    pub fn status(&self, now_ms: u64) -> RunStatus {
        let next = self.committed.iteration.next();
        RunStatus {
            run: self.config.name.clone(),
            state: self.state(),
            reason: self.failure(),
            iteration: Iteration(next.0.min(self.config.iterations)),
            committed: self.committed.iteration,
            checkpointed: self.checkpoint.committed.iteration,
            checkpoint_pending: self.checkpoint_asked,
            iterations: self.config.iterations,
            stage: self.stage(),
            groups: self
                .open
                .get(&next)
                .map(|open| open.counts())
                .unwrap_or_default(),
            workers: self
                .workers
                .iter()
                .map(|(id, worker)| self.worker_status(id, worker, now_ms))
                .collect(),
            version: self.policy().hash().map(|hash| hash.to_string()),
            rates: self.rates(now_ms),
            history: self.history.iter().cloned().collect(),
            totals: self.totals,
            eta_s: self.eta_s(now_ms),
            uptime_s: (now_ms - self.started_ms) as f64 / 1e3,
            stalls: self.stalls(now_ms),
        }
    }

    /// Why the run ended, or ends, otherwise than people wanted.
    pub(super) fn failure(&self) -> Option<String> {
        match &self.phase {
            super::Phase::Over { outcome, .. } => outcome.failure.clone(),
            super::Phase::Stopping { failure, .. } => failure.clone(),
            _ => None,
        }
    }

    fn stage(&self) -> Stage {
        match &self.training {
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
        let uptime_ms = now_ms - self.started_ms;
        Rates {
            samples_per_s: self.throughput.sampled.per_s(now_ms, uptime_ms),
            scores_per_s: self.throughput.scored.per_s(now_ms, uptime_ms),
            iterations_per_h: self.iteration_s().map_or(0.0, |seconds| 3600.0 / seconds),
        }
    }

    /// Mean time of the last iterations.
    fn iteration_s(&self) -> Option<f64> {
        let last: Vec<f64> = self
            .history
            .iter()
            .rev()
            .take(ETA_ITERATIONS)
            .map(|metrics| metrics.stage_s.wall)
            .collect();
        let mean = last.iter().sum::<f64>() / last.len() as f64;
        Some(mean).filter(|seconds| *seconds > 0.0)
    }

    fn eta_s(&self, now_ms: u64) -> Option<f64> {
        let left = self
            .config
            .iterations
            .saturating_sub(self.committed.iteration.0);
        let next = self.open.get(&self.committed.iteration.next());
        let spent_s = next.map_or(0.0, |open| {
            now_ms.saturating_sub(open.opened_ms) as f64 / 1e3
        });
        let all_s = self.iteration_s()? * f64::from(left);
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
