//! The end of a training step: an iteration happened, entirely or not at all (A8).

use retouch_proto::status::{EventKind, IterationMetrics};
use retouch_proto::task::TrainResult;
use retouch_proto::{BlobRef, GroupId};

use super::record::{Blob, Checkpoint, Committed, CommittedEntry, Entry, KeptGroup, Policy};
use super::training::{Purpose, Retry, Training};
use super::{HISTORY_MAX, Machine};

impl Machine {
    /// All ranks are done: they agree, or the step did not happen.
    pub(super) fn conclude(&mut self) {
        let Some(training) = self.training.take() else {
            return;
        };
        for rank in &training.ranks {
            self.close_lease(rank.lease);
        }
        let results: Vec<&TrainResult> = training
            .ranks
            .iter()
            .filter_map(|rank| rank.result.as_ref())
            .collect();
        if let Some(problem) = self.disagreement(&training, &results) {
            self.event(EventKind::RanksDisagree, problem.clone());
            let members = training
                .ranks
                .iter()
                .map(|rank| rank.member.clone())
                .collect();
            return self.step_failed(members, training.purpose, problem);
        }
        let first = results[0].clone();
        let committed = left_behind(&first);
        let ema_adapter = first.ema_adapter;
        match training.purpose {
            Purpose::Learn => self.commit(committed, Some((&training, first))),
            // What the ranks wrote down is what samples next when the run goes on.
            Purpose::WriteDown => {
                self.committed = committed;
                self.retry = Retry::default();
            }
        }
        if training.checkpoint {
            self.checkpointed(Checkpoint {
                committed,
                ema_adapter,
            });
        }
    }

    fn disagreement(&self, training: &Training, results: &[&TrainResult]) -> Option<String> {
        let first = results[0];
        for (result, rank) in results.iter().zip(&training.ranks) {
            if (result.state.hash, result.version.hash) != (first.state.hash, first.version.hash) {
                let (a, b) = (first.state.hash.short(), result.state.hash.short());
                return Some(format!("rank 0 made state {a}, {} made {b}", rank.member.0));
            }
        }
        let written = self
            .committed
            .state
            .filter(|_| training.purpose == Purpose::WriteDown);
        if written.is_some_and(|state| state.hash != first.state.hash) {
            return Some(format!(
                "the state was written down as {}",
                first.state.hash.short()
            ));
        }
        let missing = training.checkpoint && first.ema_adapter.is_none();
        missing.then(|| "rank 0 was asked for a checkpoint and named no adapter".to_owned())
    }

    /// The iteration happened; `trained` is absent if there was nothing to train on.
    pub(super) fn commit(
        &mut self,
        committed: Committed,
        trained: Option<(&Training, TrainResult)>,
    ) {
        let iteration = committed.iteration;
        let open = self
            .open
            .remove(&iteration)
            .expect("only open iterations are committed");
        let sealed = open.sealed.expect("only sealed iterations are committed");
        let mut metrics = sealed.metrics;
        metrics.version = committed.policy.hash().map(|hash| hash.to_string());
        metrics.stage_s.train = self.seconds_since(sealed.sealed_ms);
        metrics.stage_s.wall = self.seconds_since(open.opened_ms);
        if let Some((training, result)) = trained {
            metrics.resharded = training.resharded;
            metrics.ema_adapter = result.ema_adapter.map(|hash| hash.to_string());
            metrics.train = Some(result.metrics).filter(|_| !sealed.kept.is_empty());
        }
        let banned: Vec<u32> = sealed
            .solved
            .into_iter()
            .filter(|row| self.prompts.ban(*row, iteration))
            .collect();
        metrics.banned = banned.len() as u32;
        metrics.banned_total = self.prompts.banned() as u32;
        self.count_commit(&metrics);
        self.committed = committed;
        self.policies.push(committed.policy);
        self.forget_old_policies();
        self.record_commit(metrics.clone(), (sealed.kept, sealed.stale), banned);
        self.watch(&metrics);
        self.forget_unwanted();
        self.looks_for_lost = true;
        self.retry = Retry::default();
        self.progress();
    }

    fn record_commit(
        &mut self,
        metrics: IterationMetrics,
        (kept, stale): (Vec<KeptGroup>, Vec<GroupId>),
        banned: Vec<u32>,
    ) {
        let position = self.prompts.position();
        // If the next one is open already, it began elsewhere, and drawing goes on here all the same.
        self.positions
            .entry(metrics.iteration.next())
            .or_insert(position);
        self.history.push_back(metrics.clone());
        if self.history.len() > HISTORY_MAX {
            self.history.pop_front();
        }
        let message = committed_message(&metrics);
        let (committed, totals) = (self.committed, self.totals);
        let entry = CommittedEntry {
            committed,
            metrics,
            kept,
            stale,
            banned,
            next_position: position,
            totals,
        };
        self.record(Entry::Committed(Box::new(entry)));
        self.event(EventKind::IterationCommitted, message);
    }

    fn seconds_since(&self, at_ms: u64) -> f64 {
        (self.now_ms - at_ms) as f64 / 1e3
    }

    fn count_commit(&mut self, metrics: &IterationMetrics) {
        let totals = &mut self.totals;
        totals.groups_kept += u64::from(metrics.kept);
        totals.groups_filtered += u64::from(metrics.filtered);
        totals.groups_dropped += u64::from(metrics.dropped);
        totals.groups_stale += u64::from(metrics.stale);
        totals.resharded += u64::from(metrics.resharded);
        totals.empty_iterations += u64::from(metrics.kept == 0);
    }

    /// Policies are remembered as long as samples may be stale.
    pub(super) fn forget_old_policies(&mut self) {
        let kept = self.config.rollout.staleness_max as usize + 1;
        self.policies
            .drain(..self.policies.len().saturating_sub(kept));
    }

    fn checkpointed(&mut self, checkpoint: Checkpoint) {
        self.checkpoint = checkpoint;
        self.positions
            .retain(|iteration, _| *iteration > checkpoint.committed.iteration);
        self.track_checkpoint_files(&checkpoint);
        self.forget_unwanted();
        self.record(Entry::Checkpointed(checkpoint));
    }
}

/// What the ranks agree on, as the record keeps it.
fn left_behind(result: &TrainResult) -> Committed {
    let blob = |reference: &BlobRef| Blob {
        hash: reference.hash,
        size_bytes: reference.size_bytes,
    };
    let policy = Policy {
        iteration: result.iteration,
        adapter: Some(blob(&result.version)),
    };
    Committed {
        iteration: result.iteration,
        state: Some(blob(&result.state)),
        policy,
    }
}

fn committed_message(metrics: &IterationMetrics) -> String {
    let loss = metrics.train.map_or("no training".to_owned(), |train| {
        format!("loss {:.5}", train.policy_loss)
    });
    format!(
        "iteration {} committed: mean reward {:.4}, {loss}, {:.1} s",
        metrics.iteration, metrics.reward_mean, metrics.stage_s.wall,
    )
}
