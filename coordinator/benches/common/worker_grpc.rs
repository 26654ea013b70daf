//! A rollout worker of the dispatch benchmark, over a socket (A2).

use std::path::Path;

use retouch_coordinator::{Admission, Coordinator, CoordinatorOptions};
use retouch_proto::grpc::coordinator_client::CoordinatorClient;
use retouch_proto::task::{Assignment, TaskResult};
use retouch_proto::worker::{Registered, Report, ReportReply, Role, WorkerState};
use retouch_proto::{Generation, LeaseId, RunConfig, WorkerId};
use tonic::transport::Channel;

use crate::common;

/// A coordinator and one worker that always has a task.
pub(crate) struct Worker {
    client: CoordinatorClient<Channel>,
    id: WorkerId,
    generation: Generation,
    sequence: u64,
    task: Option<Assignment>,
    _coordinator: Coordinator,
}

impl Worker {
    /// Starts both and takes the first task.
    pub(crate) async fn start(config: RunConfig, run_dir: &Path) -> Self {
        let listen = "127.0.0.1:0".parse().expect("an address");
        let options = CoordinatorOptions::new(config, run_dir.to_owned(), listen, Admission::Open);
        let coordinator = Coordinator::start(options).await.expect("a coordinator");
        let address = format!("http://{}", coordinator.address());
        let mut client = CoordinatorClient::connect(address)
            .await
            .expect("a connection");
        let registration = common::registration(Role::Rollout, 0);
        let id = registration.worker.clone();
        let reply = client
            .register(tonic::Request::new(registration.into()))
            .await
            .expect("registered");
        let generation = Registered::try_from(reply.into_inner())
            .expect("a valid answer")
            .generation;
        let mut worker = Self {
            client,
            id,
            generation,
            sequence: 0,
            task: None,
            _coordinator: coordinator,
        };
        worker.report(Vec::new(), Vec::new()).await;
        worker
    }

    async fn report(&mut self, running: Vec<LeaseId>, results: Vec<TaskResult>) {
        self.sequence += 1;
        let report = Report {
            worker: self.id.clone(),
            generation: self.generation,
            sequence: self.sequence,
            state: WorkerState::Ready,
            slots_free: 1 - running.len() as u32,
            running,
            results,
            blobs_added: Vec::new(),
            blobs_dropped: Vec::new(),
        };
        let reply = self
            .client
            .report(tonic::Request::new(report.into()))
            .await
            .expect("answered");
        let reply = ReportReply::try_from(reply.into_inner()).expect("a valid answer");
        self.task = reply.assignments.into_iter().next().or(self.task.take());
    }

    /// Reports that the task goes on.
    pub(crate) async fn heartbeat(&mut self) {
        let lease = self.task.as_ref().expect("a task").lease;
        self.report(vec![lease], Vec::new()).await;
    }

    /// Reports the task's result and takes the next one.
    pub(crate) async fn work_once(&mut self) {
        let Assignment { lease, task, .. } = self.task.take().expect("a task");
        let outcome = common::outcome(&task);
        self.report(Vec::new(), vec![TaskResult { lease, outcome }])
            .await;
        assert!(self.task.is_some(), "the answer carries the next task");
    }
}
