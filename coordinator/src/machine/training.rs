//! From a sealed iteration to a committed one: all ranks or none (A8).

use retouch_proto::status::{EventKind, Presence};
use retouch_proto::task::{CollectiveEpoch, TaskFailure, TrainGroup, TrainResult, TrainTask};
use retouch_proto::worker::Role;
use retouch_proto::{BlobRef, Epoch, GroupId, Iteration, LeaseId, WorkerId};

use super::Machine;
use super::control::Phase;
use super::groups::FETCH_FAILURES_MAX;
use super::leases::Work;
use super::leaving::Order;
use super::membership::{Candidates, Member, Plan, plan};
use super::record::{Blob, Committed, KeptGroup, Policy};
use super::workers::Worker;

/// A training step under way.
pub(super) struct Training {
    /// The iteration it makes, or whose state it writes down.
    pub iteration: Iteration,
    /// What for.
    pub purpose: Purpose,
    /// The ranks' epoch.
    pub epoch: Epoch,
    /// The ranks in order.
    pub ranks: Vec<Rank>,
    /// Whether rank 0 writes a checkpoint.
    pub checkpoint: bool,
    /// Whether fewer ranks train than configured.
    pub resharded: bool,
}

/// What a training step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To make the next iteration.
    Learn,
    /// To write down the last one before the run ends.
    WriteDown,
}

/// One rank of a training step.
pub(super) struct Rank {
    /// Who it is, and which life.
    pub member: Member,
    /// Under which lease.
    pub lease: LeaseId,
    /// What it made.
    pub result: Option<TrainResult>,
}

/// What failed so far on the way to the next commit.
#[derive(Default)]
pub(super) struct Retry {
    attempts: u32,
    fetch_failures: u32,
    not_before_ms: u64,
    /// Members of the epoch that failed last: if one of them turns out to be dead, the failure
    /// was its death and is no attempt.
    blamed: Vec<Member>,
}

impl Machine {
    /// Starts what can be started; tells whether an iteration was committed.
    pub(super) fn train(&mut self) -> bool {
        if self.is_over() || self.training.is_some() {
            return false;
        }
        if self.wants_end() {
            self.end();
            return false;
        }
        if self.write_down_if_asked() {
            return false;
        }
        let active = matches!(self.phase, Phase::Running | Phase::Draining { .. });
        let next = self.committed.iteration.next();
        let ready = self
            .open
            .get(&next)
            .is_some_and(|open| open.sealed.is_some() && open.is_collected());
        if !active || !ready {
            return false;
        }
        let checkpoint = self.is_checkpoint_due(next);
        if self.kept_groups(next).is_empty() && !checkpoint {
            let Committed { state, policy, .. } = self.committed;
            let policy = Policy {
                iteration: next,
                ..policy
            };
            self.commit(
                Committed {
                    iteration: next,
                    state,
                    policy,
                },
                None,
            );
            return true;
        }
        if !self.remake_lost_latents(next) {
            self.start(next, Purpose::Learn, checkpoint);
        }
        false
    }

    fn is_checkpoint_due(&self, iteration: Iteration) -> bool {
        iteration
            .0
            .is_multiple_of(self.config.learner.checkpoint_every)
            || iteration.0 >= self.config.iterations
            || self.phase == (Phase::Draining { last: iteration })
    }

    fn kept_groups(&self, iteration: Iteration) -> &[KeptGroup] {
        let sealed = self
            .open
            .get(&iteration)
            .and_then(|open| open.sealed.as_ref());
        sealed.map_or(&[], |sealed| &sealed.kept)
    }

    /// Whether the run ends as soon as the last committed iteration is durable.
    pub(super) fn wants_end(&self) -> bool {
        match self.phase {
            Phase::Stopping { .. } => true,
            Phase::Draining { last } => self.committed.iteration >= last,
            _ => self.committed.iteration.0 >= self.config.iterations,
        }
    }

    fn end(&mut self) {
        let late =
            matches!(self.phase, Phase::Stopping { until_ms, .. } if until_ms <= self.now_ms);
        if late {
            let message =
                "no learner could write the last state down; the last checkpoint stays".into();
            self.event(EventKind::Control, message);
        }
        if late || self.checkpoint.committed.iteration == self.committed.iteration {
            return self.finish();
        }
        self.start(self.committed.iteration, Purpose::WriteDown, true);
    }

    /// Starts the checkpoint that a person asked for; tells whether one is to be made.
    fn write_down_if_asked(&mut self) -> bool {
        self.checkpoint_asked &= self.checkpoint.committed.iteration < self.committed.iteration;
        if self.checkpoint_asked {
            self.start(self.committed.iteration, Purpose::WriteDown, true);
        }
        self.checkpoint_asked
    }

    /// Whether the run goes on when this step can't be made.
    fn can_do_without(&self, purpose: Purpose) -> bool {
        purpose == Purpose::WriteDown && self.checkpoint_asked && !self.wants_end()
    }

    fn give_up_checkpoint(&mut self, problem: &str) {
        self.checkpoint_asked = false;
        self.retry = Retry::default();
        let message = format!("the checkpoint that was asked for can't be made: {problem}");
        self.event(EventKind::Control, message);
    }

    /// Has lost latents of kept groups made again; tells whether there are any.
    fn remake_lost_latents(&mut self, iteration: Iteration) -> bool {
        let kept = self
            .kept_groups(iteration)
            .iter()
            .filter_map(|kept| self.group(kept.group));
        let lost =
            kept.filter(|group| !self.all_available(group.latents()) || self.is_policy_lost(group));
        let lost: Vec<(GroupId, bool)> = lost
            .map(|group| (group.drawn.group, self.is_policy_lost(group)))
            .collect();
        if self.adopting_until_ms.is_none() {
            for (id, is_policy_lost) in &lost {
                if *is_policy_lost {
                    self.sample_anew(*id)
                } else {
                    self.remake(*id)
                }
            }
        }
        !lost.is_empty()
    }

    fn start(&mut self, iteration: Iteration, purpose: Purpose, checkpoint: bool) {
        if self.now_ms < self.retry.not_before_ms || !self.is_state_available() {
            return;
        }
        let members = match plan(self.candidates(purpose), self.now_ms) {
            Plan::Go(members) => members,
            Plan::Wait(until_ms) => {
                self.shortage_since_ms.get_or_insert(self.now_ms);
                return self.look_at(until_ms);
            }
            // The shortage goes on: whoever joins is welcome at once.
            Plan::TooFew => return,
        };
        self.shortage_since_ms = None;
        let epoch = self.collective.epoch(&members);
        if !self.can_meet(epoch, &members) {
            return;
        }
        let resharded = members.len() < self.config.learner.ranks as usize;
        if resharded {
            let message = format!(
                "{} of {} ranks train",
                members.len(),
                self.config.learner.ranks
            );
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
        self.training = Some(Training {
            iteration,
            purpose,
            epoch,
            ranks,
            checkpoint,
            resharded,
        });
        self.progress();
    }

    /// Learners that could train now, those that hold the state first. Who leaves may still have to
    /// write the state down.
    fn candidates(&self, purpose: Purpose) -> Candidates {
        let state = self.committed.state.map(|state| state.hash);
        let leaves = |worker: &Worker| matches!(worker.order, Some(Order::Leave { .. }));
        let ready = self.workers.alive(Role::Learner).filter(|(_, worker)| {
            let helps = purpose == Purpose::WriteDown && leaves(worker);
            (worker.presence == Presence::Ready || helps) && worker.collective_address.is_some()
        });
        let mut ready: Vec<Member> = ready
            .map(|(id, worker)| (id.clone(), worker.generation))
            .collect();
        let (ranks, most) = self.ranks();
        ready.sort_by_key(|(id, _)| !state.is_some_and(|state| self.blobs.is_held_by(state, id)));
        ready.truncate(most);
        ready.sort();
        Candidates {
            ready,
            ranks,
            ranks_min: self.config.learner.ranks_min as usize,
            ranks_max: most,
            gradient_shards: self.config.learner.gradient_shards as usize,
            short_since_ms: self.shortage_since_ms.unwrap_or(self.now_ms),
            grace_ms: self.config.cluster.rank_grace_s * 1000,
        }
    }

    /// Ranks that the run asks for, and the most that it takes.
    pub(super) fn ranks(&self) -> (usize, usize) {
        let learner = &self.config.learner;
        let most = learner.ranks_max.max(learner.ranks);
        (learner.ranks as usize, most as usize)
    }

    /// One rank's task.
    pub(super) fn train_task(&mut self, lease: LeaseId) -> Option<TrainTask> {
        let training = self.training.as_ref()?;
        let rank = training.ranks.iter().position(|rank| rank.lease == lease)?;
        let collective = CollectiveEpoch {
            epoch: training.epoch,
            rank: rank as u32,
            world: training.ranks.len() as u32,
            peers: training
                .ranks
                .iter()
                .filter_map(|rank| self.collective_address(rank))
                .collect(),
            unique_id: self.collective.unique_id(),
        };
        let (iteration, checkpoint) = (training.iteration, training.checkpoint);
        let kept = match training.purpose {
            Purpose::Learn => self.kept_groups(iteration).to_vec(),
            Purpose::WriteDown => Vec::new(),
        };
        let versions = self.versions_of(&kept);
        let state = self.committed.state.map(|state| self.reference(state));
        let groups = kept
            .into_iter()
            .filter_map(|kept| self.train_group(kept))
            .collect();
        Some(TrainTask {
            iteration,
            collective,
            state,
            versions,
            groups,
            checkpoint,
        })
    }

    fn collective_address(&self, rank: &Rank) -> Option<std::net::SocketAddr> {
        self.workers.get(&rank.member.0)?.collective_address
    }

    fn versions_of(&mut self, kept: &[KeptGroup]) -> Vec<BlobRef> {
        let policies = kept
            .iter()
            .filter_map(|kept| self.group(kept.group)?.policy?.adapter);
        let mut adapters: Vec<Blob> = policies.collect();
        adapters.sort_by_key(|blob| blob.hash);
        adapters.dedup();
        adapters
            .into_iter()
            .map(|blob| self.reference(blob))
            .collect()
    }

    fn train_group(&mut self, kept: KeptGroup) -> Option<TrainGroup> {
        let group = self.group(kept.group)?;
        let version = group.policy.and_then(|policy| policy.hash());
        let latents: Vec<Blob> = group.latents().collect();
        let [x0, condition] = latents.try_into().ok()?;
        let (x0, condition) = (self.reference(x0), self.reference(condition));
        Some(TrainGroup {
            group: kept.group,
            x0,
            condition,
            version,
            advantages: kept.advantages,
        })
    }

    pub(super) fn take_train(&mut self, worker: &WorkerId, result: TrainResult) {
        let Some(training) = self.training.as_mut() else {
            return;
        };
        if (result.epoch, result.iteration) != (training.epoch, training.iteration) {
            return;
        }
        let Some(rank) = training
            .ranks
            .iter_mut()
            .find(|rank| rank.member.0 == *worker)
        else {
            return;
        };
        let (state, version) = (result.state.hash, result.version.hash);
        rank.result = Some(result);
        let complete = training.ranks.iter().all(|rank| rank.result.is_some());
        self.blobs.track(state);
        self.blobs.track(version);
        self.blobs.add(worker, [state, version]);
        self.progress();
        if complete {
            self.conclude();
        }
    }

    pub(super) fn train_failed(&mut self, worker: &WorkerId, failure: TaskFailure) {
        let Some(training) = self.training.as_ref() else {
            return;
        };
        let members: Vec<Member> = training
            .ranks
            .iter()
            .map(|rank| rank.member.clone())
            .collect();
        let rank = members.iter().position(|member| member.0 == *worker);
        let problem = format!(
            "rank {} on {worker}: {}",
            rank.unwrap_or_default(),
            failure.reason
        );
        let purpose = training.purpose;
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
        let kept = [
            self.committed.state.map(|state| state.hash),
            self.policy().hash(),
        ];
        // State and policy are not taken for lost because one rank can't reach their owners.
        for hash in failure
            .lost_blobs
            .iter()
            .filter(|hash| !kept.contains(&Some(**hash)))
        {
            self.blobs.remove_owners(*hash);
        }
        self.looks_for_lost = true;
        self.retry.fetch_failures += 1;
        if self.retry.fetch_failures >= FETCH_FAILURES_MAX {
            return self.step_given_up(purpose, format!("training failed: {problem}"));
        }
        self.retry_at(self.now_ms + self.config.cluster.heartbeat_ms);
    }

    pub(super) fn step_failed(&mut self, members: Vec<Member>, purpose: Purpose, problem: String) {
        self.collective.dissolve();
        self.retry.attempts += 1;
        self.retry.blamed = members;
        self.totals.attempts_failed += 1;
        let (attempts, attempts_max) = (self.retry.attempts, self.config.cluster.attempts_max);
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
        self.retry_at(self.now_ms + self.workers.silence_ms_max());
    }

    /// The run can't go on without this step.
    pub(super) fn step_given_up(&mut self, purpose: Purpose, problem: String) {
        match purpose {
            Purpose::Learn => self.fail(problem),
            Purpose::WriteDown => self.fail_to_write_down(problem),
        }
    }

    fn retry_at(&mut self, at_ms: u64) {
        self.retry.not_before_ms = at_ms;
        self.look_at(at_ms);
    }

    /// A member of the failed epoch was lost: the failure was not an attempt.
    pub(super) fn forgive(&mut self, lost: &Member) {
        if self.retry.blamed.contains(lost) {
            self.retry.blamed.clear();
            self.retry.attempts -= 1;
            self.retry.not_before_ms = self.now_ms;
        }
    }

    /// Ends the training step without a result.
    pub(super) fn abort_training(&mut self) {
        let Some(training) = self.training.take() else {
            return;
        };
        for rank in &training.ranks {
            self.close_lease(rank.lease);
        }
        self.collective.dissolve();
    }

    /// Whether this rank still owes its result.
    pub(super) fn is_training_without_result(&self, worker: &WorkerId) -> bool {
        let ranks = self.training.iter().flat_map(|training| &training.ranks);
        ranks
            .clone()
            .any(|rank| rank.member.0 == *worker && rank.result.is_none())
    }
}
