//! From a sealed iteration to the ranks' results: all ranks or none (A8).

use retouch_proto::status::{EventKind, Presence};
use retouch_proto::task::{TaskFailure, TrainResult};
use retouch_proto::worker::Role;
use retouch_proto::{ContentHash, GroupId, Iteration, WorkerId};

use super::Machine;
use super::groups::FETCH_FAILURES_MAX;
use super::learning::{Purpose, Rank, Reported, Retry, Trained, Training};
use super::leases::Work;
use super::membership::{Candidates, Member, Plan, plan};
use super::record::{Committed, Policy};
use super::workers::{Order, Worker};

/// What came of looking for blobs that a step needs.
#[derive(Debug, PartialEq, Eq)]
enum Latents {
    /// All are there.
    Available,
    /// Some are being made again, or their holders may still register.
    Awaited,
}

impl Machine {
    /// Starts what can be started, in this order: the end of the run, a checkpoint that was asked for, the next
    /// iteration.
    pub(super) fn train(&mut self) -> Trained {
        if self.is_over() || self.learning.is_training() {
            return Trained::Nothing;
        }
        // Before the phase is looked at: a run that is being stopped starts nothing but this.
        if self.wants_end() {
            self.end();
            return Trained::Nothing;
        }
        // A paused run has its state written down too: whoever pauses it may want to move it.
        if self.is_checkpoint_wanted() {
            self.write_down();
            return Trained::Nothing;
        }
        let next = self.progress.next();
        if !self.phase.is_active() || !self.is_sealed(next) {
            return Trained::Nothing;
        }
        let checkpoint = self.is_checkpoint_due(next);
        // Learners have nothing to do for an iteration without kept groups, unless its state is to be written.
        if self.open.kept(next).is_empty() && !checkpoint {
            self.commit_untrained(next);
            return Trained::Committed;
        }
        if self.remake_lost_latents(next) == Latents::Available {
            self.start(next, Purpose::Learn, checkpoint);
        }
        Trained::Nothing
    }

    /// Whether the iteration has been sealed and no group of it was put back since.
    fn is_sealed(&self, iteration: Iteration) -> bool {
        let open = self.open.get(iteration);
        open.is_some_and(|open| open.sealed.is_some() && open.is_collected())
    }

    fn is_checkpoint_due(&self, iteration: Iteration) -> bool {
        iteration
            .0
            .is_multiple_of(self.config.learner.checkpoint_every)
            || iteration.0 >= self.config.iterations
            || self.phase.drains_at(iteration)
    }

    /// The state stays as it is and the policy becomes a version of its own all the same, since staleness is
    /// counted in iterations (A6).
    fn commit_untrained(&mut self, iteration: Iteration) {
        let Committed { state, policy, .. } = self.progress.committed();
        let policy = Policy {
            iteration,
            ..policy
        };
        let committed = Committed {
            iteration,
            state,
            policy,
        };
        self.commit(committed, None);
    }

    /// Whether the run ends as soon as the last committed iteration is durable.
    fn wants_end(&self) -> bool {
        let committed = self.progress.committed().iteration;
        self.phase.wants_end(committed, self.config.iterations)
    }

    fn end(&mut self) {
        let late = self.phase.is_stop_overdue(self.timers.now_ms());
        if late {
            let message =
                "no learner could write the last state down; the last checkpoint stays".into();
            self.event(EventKind::Control, message);
        }
        if late || self.progress.is_checkpointed() {
            return self.finish();
        }
        self.write_down();
    }

    /// Whether a checkpoint was asked for that is not there yet.
    fn is_checkpoint_wanted(&mut self) -> bool {
        // The step that was under way when it was asked for may have written one.
        if self.progress.is_checkpointed() {
            self.learning.forget_checkpoint();
        }
        self.learning.is_checkpoint_asked()
    }

    /// Starts a step that only writes the last state down.
    fn write_down(&mut self) {
        let last = self.progress.committed().iteration;
        self.start(last, Purpose::WriteDown, true);
    }

    /// Has lost latents of kept groups made again.
    fn remake_lost_latents(&mut self, iteration: Iteration) -> Latents {
        let kept = self.open.kept(iteration).iter();
        let groups = kept.filter_map(|kept| self.open.group(kept.group));
        let lost = groups.filter(|group| !self.blobs.are_available(group.latents()));
        let lost: Vec<GroupId> = lost.map(|group| group.drawn.group).collect();
        if lost.is_empty() {
            return Latents::Available;
        }
        if !self.blobs.is_awaiting_holders() {
            lost.into_iter().for_each(|id| self.remake(id));
        }
        Latents::Awaited
    }

    fn start(&mut self, iteration: Iteration, purpose: Purpose, checkpoint: bool) {
        let now_ms = self.timers.now_ms();
        if !self.learning.retry.is_due(now_ms) || !self.is_state_available() {
            return;
        }
        let members = match plan(self.candidates(purpose), now_ms) {
            Plan::Go(members) => members,
            Plan::Wait(until_ms) => {
                self.learning.miss_ranks(now_ms);
                return self.timers.look_at(until_ms);
            }
            // Since when ranks are missing stays as it is: the grace is over, so whoever joins trains at once.
            Plan::TooFew => return,
        };
        let ranks = self.config.learner.ranks;
        let resharded = purpose == Purpose::Learn && members.len() < ranks as usize;
        // A rank that is gone for good is waited for once, not in every iteration, nor after every checkpoint.
        match purpose {
            Purpose::Learn if resharded => self.learning.miss_ranks(now_ms),
            Purpose::Learn => self.learning.find_ranks(),
            Purpose::WriteDown => {}
        }
        let epoch = match purpose {
            Purpose::Learn => self.learning.collective.epoch(&members),
            // Who writes down meets nobody, and the others stay introduced.
            Purpose::WriteDown => self.learning.collective.epoch_apart(),
        };
        if purpose == Purpose::Learn && !self.can_meet() {
            return self.mint(epoch, &members);
        }
        if resharded {
            let message = format!("{} of {ranks} ranks train", members.len());
            self.event(EventKind::Resharded, message);
        }
        let grant = |member: Member| {
            let lease = self.grant(&member.0, Work::Train);
            Rank {
                member,
                lease,
                result: None,
            }
        };
        let ranks = members.into_iter().map(grant).collect();
        self.learning.begin(Training {
            iteration,
            purpose,
            epoch,
            ranks,
            checkpoint,
            resharded,
        });
        // A step that is tried again, for want of space for one, is no progress.
        if self.learning.retry.is_first() {
            self.moved();
        }
    }

    /// Learners that could train now.
    fn candidates(&self, purpose: Purpose) -> Candidates {
        let state = self.progress.committed().state.map(|state| state.hash);
        let leaves = |worker: &Worker| matches!(worker.order, Some(Order::Leave { .. }));
        let ready = self.workers.alive(Role::Learner).filter(|(_, worker)| {
            // Who is on its way out learns no more, but may be the one that has to write the state down first.
            let helps = purpose == Purpose::WriteDown && leaves(worker);
            (worker.presence == Presence::Ready || helps) && worker.collective_address.is_some()
        });
        let mut ready: Vec<Member> = ready
            .map(|(id, worker)| (id.clone(), worker.generation))
            .collect();
        // The state is the same on every rank: one of them writes it down.
        let (ranks, least, most) = match purpose {
            Purpose::Learn => {
                let (ranks, most) = self.ranks();
                (ranks, self.config.learner.ranks_min as usize, most)
            }
            Purpose::WriteDown => (1, 1, 1),
        };
        // Holders of the state come first when there are more than are taken, since the others have to fetch it;
        // the order by name afterwards keeps an epoch's ranks the same from step to step.
        ready.sort_by_key(|(id, _)| !state.is_some_and(|state| self.blobs.is_held_by(state, id)));
        ready.truncate(most);
        ready.sort();
        let missing_since_ms = self.learning.ranks_missing_since_ms();
        Candidates {
            ready,
            ranks,
            ranks_min: least,
            ranks_max: most,
            gradient_shards: self.config.learner.gradient_shards as usize,
            short_since_ms: missing_since_ms.unwrap_or(self.timers.now_ms()),
            grace_ms: self.config.cluster.rank_grace_s * 1000,
        }
    }

    /// Ranks that the run asks for, and the most that it takes.
    pub(super) fn ranks(&self) -> (usize, usize) {
        let learner = &self.config.learner;
        let most = learner.ranks_max.max(learner.ranks);
        (learner.ranks as usize, most as usize)
    }

    pub(super) fn take_train(&mut self, worker: &WorkerId, result: TrainResult) {
        let made = [result.state.hash, result.version.hash];
        let reported = self.learning.report(worker, result);
        if reported == Reported::Stray {
            return;
        }
        // Tracked before they are committed: a rank may drop or die with them before the others are done.
        for hash in made {
            self.blobs.track(hash);
        }
        self.blobs.add(worker, made);
        self.moved();
        if reported == Reported::Complete {
            self.conclude();
        }
    }

    pub(super) fn train_failed(&mut self, worker: &WorkerId, failure: TaskFailure) {
        let Some(training) = self.learning.training() else {
            return;
        };
        let (members, purpose) = (training.members(), training.purpose);
        let rank = members.iter().position(|member| member.0 == *worker);
        let problem = format!(
            "rank {} on {worker}: {}",
            rank.unwrap_or_default(),
            failure.reason
        );
        // One rank's failure fails the step: the others wait for it in the all-reduce.
        self.abort_training();
        if !failure.retryable && self.can_do_without(purpose) {
            return self.give_up_checkpoint(&problem);
        }
        if !failure.retryable {
            return self.step_given_up(purpose, format!("training failed: {problem}"));
        }
        if failure.lost_blobs.is_empty() {
            return self.step_failed(members, purpose, problem);
        }
        // State and policies are not taken for lost because one rank can't reach their owners: that would mean a rewind.
        let needed: Vec<ContentHash> = self.progress.needed().collect();
        let lost = failure.lost_blobs.iter();
        for hash in lost.filter(|hash| !needed.contains(hash)) {
            self.blobs.remove_owners(*hash);
        }
        self.blobs.suspect_loss();
        if self.learning.retry.fail_to_fetch() >= FETCH_FAILURES_MAX {
            return self.step_given_up(purpose, format!("training failed: {problem}"));
        }
        self.retry_at(self.timers.now_ms() + self.config.cluster.heartbeat_ms);
    }

    pub(super) fn step_failed(&mut self, members: Vec<Member>, purpose: Purpose, problem: String) {
        self.learning.collective.dissolve();
        self.telemetry.totals.attempts_failed += 1;
        let attempts = self.learning.retry.fail(members);
        let attempts_max = self.config.cluster.attempts_max;
        let message = format!("training, attempt {attempts} of {attempts_max}: {problem}");
        self.event(EventKind::AttemptFailed, message);
        if attempts >= attempts_max && self.can_do_without(purpose) {
            return self.give_up_checkpoint(&problem);
        }
        if attempts >= attempts_max {
            let times = format!("training failed {attempts} times, the last time on {problem}");
            return self.step_given_up(purpose, times);
        }
        // Long enough to notice that a member died, which is then no failed attempt.
        self.retry_at(self.timers.now_ms() + self.workers.silence_ms_max());
    }

    /// Whether the run goes on when this step can't be made.
    fn can_do_without(&self, purpose: Purpose) -> bool {
        purpose == Purpose::WriteDown && self.learning.is_checkpoint_asked() && !self.wants_end()
    }

    fn give_up_checkpoint(&mut self, problem: &str) {
        self.learning.forget_checkpoint();
        self.learning.retry = Retry::default();
        let message = format!("the checkpoint that was asked for can't be made: {problem}");
        self.event(EventKind::Control, message);
    }

    /// The run can't go on without this step.
    fn step_given_up(&mut self, purpose: Purpose, problem: String) {
        match purpose {
            Purpose::Learn => self.fail(problem),
            Purpose::WriteDown => self.fail_to_write_down(problem),
        }
    }

    pub(super) fn retry_at(&mut self, at_ms: u64) {
        self.learning.retry.wait_until(at_ms);
        self.timers.look_at(at_ms);
    }

    /// Ends the training step without a result.
    pub(super) fn abort_training(&mut self) {
        let Some(training) = self.learning.end() else {
            return;
        };
        for rank in &training.ranks {
            self.close_lease(rank.lease);
        }
        // Ranks that still run it must not meet the next attempt: they wait in the old epoch until it is cancelled.
        self.learning.collective.dissolve();
    }
}
