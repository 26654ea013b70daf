//! The end of a training step: an iteration happened, entirely or not at all (A8).

use retouch_proto::status::{EventKind, IterationMetrics};
use retouch_proto::task::TrainResult;

use super::Machine;
use super::learning::{Purpose, Retry, Training};
use super::record::{Blob, Checkpoint, Committed, CommittedEntry, Entry, Policy};

impl Machine {
    /// All ranks are done: they agree, or the step did not happen.
    pub(super) fn conclude(&mut self) {
        let Some(training) = self.learning.end() else {
            return;
        };
        for rank in &training.ranks {
            self.close_lease(rank.lease);
        }
        let results = training.ranks.iter();
        let results: Vec<&TrainResult> = results.filter_map(|rank| rank.result.as_ref()).collect();
        if let Some(problem) = self.disagreement(&training, &results) {
            self.event(EventKind::RanksDisagree, problem.clone());
            return self.step_failed(training.members(), training.purpose, problem);
        }
        // They agree, so any rank speaks for all; only rank 0 is asked for a checkpoint.
        let first = results[0].clone();
        let committed = self.left_behind(&first);
        let ema_adapter = first.ema_adapter;
        match training.purpose {
            Purpose::Learn => self.commit(committed, Some((&training, first))),
            Purpose::WriteDown => {
                self.progress.write_down(committed);
                self.learning.retry = Retry::default();
            }
        }
        if training.checkpoint {
            self.checkpointed(Checkpoint {
                committed,
                earlier: self.progress.policies_before(committed.iteration),
                ema_adapter,
            });
        }
    }

    /// What the ranks agree on, as the record keeps it. Where they learned nothing the policy stays the one before under
    /// its old name, whether or not its state is written down: which iterations are must not change any other (A9).
    fn left_behind(&self, result: &TrainResult) -> Committed {
        let iteration = result.iteration;
        let adapter = match self.open.kept(iteration).is_empty() {
            true => self.progress.policy().adapter,
            false => Some(Blob::of(&result.version)),
        };
        Committed {
            iteration,
            state: Some(Blob::of(&result.state)),
            policy: Policy { iteration, adapter },
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
        let committed = self.progress.committed().state;
        let written = committed.filter(|_| training.purpose == Purpose::WriteDown);
        if written.is_some_and(|state| state.hash != first.state.hash) {
            let other = first.state.hash.short();
            return Some(format!("the state was written down as {other}"));
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
            .remove(iteration)
            .expect("only open iterations are committed");
        let sealed = open.sealed.expect("only sealed iterations are committed");
        let mut metrics = sealed.metrics;
        metrics.version = committed.policy.hash().map(|hash| hash.to_string());
        metrics.stage_s.train = self.seconds_since(sealed.sealed_ms);
        metrics.stage_s.wall = self.seconds_since(open.opened_ms);
        if let Some((training, result)) = trained {
            metrics.resharded = training.resharded;
            metrics.ema_adapter = result.ema_adapter.map(|hash| hash.to_string());
            // A step without groups, which was made for its checkpoint alone, measures nothing.
            metrics.train = Some(result.metrics).filter(|_| !sealed.kept.is_empty());
        }
        // Bans count from the commit on: a seal may be undone, and a ban with it.
        let solved = sealed.solved.into_iter();
        let banned: Vec<u32> = solved
            .filter(|row| self.prompts.ban(*row, iteration))
            .collect();
        metrics.banned = banned.len() as u32;
        metrics.banned_total = self.prompts.banned() as u32;
        self.progress.commit(committed);
        self.prompts.committed(iteration);
        self.telemetry.committed(&metrics);
        let message = committed_message(&metrics);
        let alarms = self.alarms(&metrics);
        let entry = CommittedEntry {
            committed,
            metrics,
            kept: sealed.kept,
            banned,
            next_position: self.prompts.position(),
            totals: self.telemetry.totals,
        };
        self.record(Entry::Committed(Box::new(entry)));
        self.event(EventKind::IterationCommitted, message);
        for message in alarms {
            self.event(EventKind::Alarm, message);
        }
        self.forget_unwanted();
        self.learning.retry = Retry::default();
        self.moved();
    }

    fn seconds_since(&self, at_ms: u64) -> f64 {
        (self.timers.now_ms() - at_ms) as f64 / 1e3
    }

    fn checkpointed(&mut self, checkpoint: Checkpoint) {
        self.record(Entry::Checkpointed(checkpoint.clone()));
        self.prompts.checkpointed(checkpoint.committed.iteration);
        self.progress.checkpoint_at(checkpoint);
        self.track_checkpoint_files();
        self.forget_unwanted();
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
