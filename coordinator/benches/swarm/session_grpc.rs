//! A session of the swarm, over a socket of its own (A2).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use retouch_proto::grpc::coordinator_client::CoordinatorClient;
use retouch_proto::limits::MESSAGE_BYTES_MAX;
use retouch_proto::task::{Assignment, Task, TaskOutcome, TaskResult};
use retouch_proto::worker::{
    Directive, Registered, Registration, Report, ReportReply, Role, RunningTask, WorkerState,
};
use retouch_proto::{ContentHash, Generation, GroupId, WorkerId};
use tokio::time::sleep;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::common::{self, outcome};
use crate::latencies::Latencies;

/// A session that lost its coordinator looks for it this often.
const RECONNECT: Duration = Duration::from_millis(100);
/// The last blobs that a session made are those that anybody asks for: eight groups, or dozens of versions.
const HOLDS_MAX: usize = 120;

/// What all sessions share.
pub(crate) struct Shared {
    /// Where the coordinator is.
    pub(crate) address: Mutex<String>,
    /// How long a rollout and a scoring take.
    pub(crate) rollout_us: AtomicU64,
    pub(crate) score_us: AtomicU64,
    pub(crate) heartbeat: Duration,
    /// From what makes a task possible until a worker has it.
    pub(crate) latencies: Latencies,
    /// Sessions that are registered.
    pub(crate) joined: AtomicU64,
    /// Assignments received under leases that the present coordinator gave out.
    pub(crate) new_leases: AtomicU64,
    /// When the results of rollouts were sent, until their scoring is given out.
    pub(crate) sampled: Mutex<HashMap<GroupId, Instant>>,
    /// Iterations that a learner made.
    pub(crate) iterations: AtomicU64,
}

/// A worker.
pub(crate) struct Session {
    shared: Arc<Shared>,
    role: Role,
    number: usize,
    id: WorkerId,
    generation: Generation,
    sequence: u64,
    task: Option<(Assignment, Instant)>,
    results: Vec<TaskResult>,
    /// When the task before was done.
    idle_since: Option<Instant>,
    /// The blobs that it says it holds after a restart of the coordinator, newest last.
    holds: Vec<ContentHash>,
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>, role: Role, number: usize) -> Self {
        Self {
            shared,
            role,
            number,
            id: common::registration(role, number).worker,
            generation: Generation(0),
            sequence: 0,
            task: None,
            results: Vec::new(),
            idle_since: None,
            holds: Vec::new(),
        }
    }

    /// Works for ever; whatever goes wrong, it connects and registers again.
    pub(crate) async fn run(mut self) {
        loop {
            if let Ok(mut client) = self.connect().await {
                self.shared.joined.fetch_add(1, Ordering::Relaxed);
                while self.turn(&mut client).await.is_ok() {}
                self.shared.joined.fetch_sub(1, Ordering::Relaxed);
            }
            sleep(RECONNECT).await;
        }
    }

    async fn connect(&mut self) -> Result<CoordinatorClient<Channel>, ()> {
        let address = self.shared.address.lock().expect("nobody panics").clone();
        let endpoint = Endpoint::from_shared(address).map_err(drop)?;
        let channel = endpoint.connect().await.map_err(drop)?;
        let mut client =
            CoordinatorClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let running = self.task.iter().map(|(assignment, _)| RunningTask {
            lease: assignment.lease,
            kind: self.role,
            group: match &assignment.task {
                Task::Rollout(task) => Some(task.group),
                Task::Score(task) => Some(task.group),
                Task::Train(_) | Task::Mint(_) => None,
            },
        });
        let registration = Registration {
            holds: self.holds.clone(),
            running: running.collect(),
            ..common::registration(self.role, self.number)
        };
        let reply = client
            .register(Request::new(registration.into()))
            .await
            .map_err(drop)?;
        let registered = Registered::try_from(reply.into_inner()).map_err(drop)?;
        (self.generation, self.sequence) = (registered.generation, 0);
        Ok(client)
    }

    /// Works until the next report is due, then reports.
    async fn turn(&mut self, client: &mut CoordinatorClient<Channel>) -> Result<(), ()> {
        if let Some((_, ends)) = &self.task {
            let now = Instant::now();
            let wait = ends.saturating_duration_since(now);
            sleep(wait.min(self.shared.heartbeat)).await;
            if Instant::now() >= *ends {
                self.end_task();
            }
        }
        let report = self.report();
        let carried = report.results.len();
        let reply = client
            .report(Request::new(report.into()))
            .await
            .map_err(drop)?;
        let reply = ReportReply::try_from(reply.into_inner()).map_err(drop)?;
        if reply.directive != Directive::Continue {
            return Err(());
        }
        self.results.drain(..carried);
        if let Some((task, _)) = &self.task
            && reply.cancel.contains(&task.lease)
        {
            self.task = None;
        }
        for assignment in reply.assignments {
            self.begin(assignment);
        }
        Ok(())
    }

    fn report(&mut self) -> Report {
        self.sequence += 1;
        Report {
            worker: self.id.clone(),
            generation: self.generation,
            sequence: self.sequence,
            state: WorkerState::Ready,
            slots_free: u32::from(self.task.is_none()),
            running: self.task.iter().map(|(task, _)| task.lease).collect(),
            results: self.results.clone(),
            blobs_added: Vec::new(),
            blobs_dropped: Vec::new(),
        }
    }

    fn begin(&mut self, assignment: Assignment) {
        if self
            .task
            .as_ref()
            .is_some_and(|(task, _)| task.lease == assignment.lease)
        {
            return;
        }
        // Generations and leases are numbered from the coordinator's start on.
        if assignment.lease.0 >> 32 == self.generation.0 >> 32 {
            self.shared.new_leases.fetch_add(1, Ordering::Relaxed);
        }
        let now = Instant::now();
        let since = match &assignment.task {
            Task::Rollout(_) => self.idle_since.take(),
            Task::Score(task) => {
                let mut sampled = self.shared.sampled.lock().expect("nobody panics");
                sampled.remove(&task.group)
            }
            Task::Train(_) | Task::Mint(_) => None,
        };
        if let Some(since) = since {
            self.shared.latencies.add(now - since);
        }
        let takes_us = match self.role {
            Role::Rollout => self.shared.rollout_us.load(Ordering::Relaxed),
            Role::Reward => self.shared.score_us.load(Ordering::Relaxed),
            Role::Learner => 0,
        };
        // Not all at once: half to one and a half of the time, by the lease's number.
        let share = 0.5
            + (assignment.lease.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64
                / (1 << 24) as f64;
        let takes = Duration::from_micros((takes_us as f64 * share) as u64);
        self.task = Some((assignment, now + takes));
    }

    fn end_task(&mut self) {
        let Some((Assignment { lease, task, .. }, _)) = self.task.take() else {
            return;
        };
        let outcome = outcome(&task);
        let now = Instant::now();
        self.idle_since = Some(now);
        match &outcome {
            TaskOutcome::Rollout(result) => {
                let mut sampled = self.shared.sampled.lock().expect("nobody panics");
                sampled.insert(result.group, now);
                let latents = [&result.x0, &result.condition]
                    .into_iter()
                    .chain(&result.sources_png);
                let blobs = latents.into_iter().chain(&result.edits_png);
                self.holds.extend(blobs.map(|blob| blob.hash));
            }
            TaskOutcome::Train(result) => {
                self.shared.iterations.fetch_add(1, Ordering::Relaxed);
                self.holds.extend([result.state.hash, result.version.hash]);
            }
            _ => {}
        }
        let old = self.holds.len().saturating_sub(HOLDS_MAX);
        self.holds.drain(..old);
        self.results.push(TaskResult { lease, outcome });
    }
}
