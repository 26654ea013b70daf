//! The coordinator over real sockets, driven by workers that speak the protocol (A2).

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use retouch_coordinator::lookup::{AtWork, Lookup};
use retouch_coordinator::store::Reader;
use retouch_coordinator::{Coordinator, CoordinatorOptions, ServeError};
use retouch_proto::grpc::control_client::ControlClient;
use retouch_proto::grpc::coordinator_client::CoordinatorClient;
use retouch_proto::grpc::{
    EventsRequest, PauseRequest, ReportRequest, ResumeRequest, StatusRequest,
};
use retouch_proto::lookup::{GroupQuery, GroupStage};
use retouch_proto::status::{Event, EventKind, RunState, RunStatus};
use retouch_proto::task::*;
use retouch_proto::worker::*;
use retouch_proto::{BlobRef, ContentHash, Iteration, LeaseId, RunFolder};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Request};

use common::{Folder, registration};

/// Nothing here takes a second; a test that hangs fails after this.
const DEADLINE: Duration = Duration::from_secs(60);

async fn start(folder: &Folder) -> Coordinator {
    Coordinator::start(folder.options()).await.unwrap()
}

async fn connect(run_dir: &Path) -> Channel {
    let address = fs::read_to_string(RunFolder::new(run_dir).coordinator_address()).unwrap();
    Channel::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .unwrap()
}

async fn status(channel: &Channel) -> RunStatus {
    let reply = ControlClient::new(channel.clone())
        .status(Request::new(StatusRequest {}))
        .await
        .unwrap();
    reply.into_inner().try_into().unwrap()
}

/// A worker that does what it is told, over a channel.
struct Peer {
    client: CoordinatorClient<Channel>,
    registration: Registration,
    generation: retouch_proto::Generation,
    sequence: u64,
    results: Vec<TaskResult>,
}

impl Peer {
    async fn join(channel: &Channel, role: Role) -> Self {
        let registration = registration(&format!("{role}-0"), role);
        let mut client = CoordinatorClient::new(channel.clone());
        let reply = client
            .register(Request::new(registration.clone().into()))
            .await
            .unwrap();
        let registered = Registered::try_from(reply.into_inner()).unwrap();
        assert!(registered.config_toml.contains("group_size = 2"));
        Self {
            client,
            registration,
            generation: registered.generation,
            sequence: 0,
            results: Vec::new(),
        }
    }

    fn next_report(&mut self, running: Vec<LeaseId>) -> Report {
        self.sequence += 1;
        Report {
            worker: self.registration.worker.clone(),
            generation: self.generation,
            sequence: self.sequence,
            state: WorkerState::Ready,
            slots_free: 1 - running.len() as u32,
            running,
            results: std::mem::take(&mut self.results),
            blobs_added: Vec::new(),
            blobs_dropped: Vec::new(),
        }
    }

    async fn report(&mut self) -> ReportReply {
        let report = self.next_report(Vec::new());
        let reply = self
            .client
            .report(Request::new(report.into()))
            .await
            .unwrap();
        reply.into_inner().try_into().unwrap()
    }

    /// Works until the run is over.
    async fn work(mut self) {
        loop {
            let reply = self.report().await;
            if reply.directive == Directive::Shutdown {
                return;
            }
            for assignment in reply.assignments {
                let outcome = outcome(assignment.task);
                self.results.push(TaskResult {
                    lease: assignment.lease,
                    outcome,
                });
            }
        }
    }
}

fn blob(parts: &str) -> BlobRef {
    BlobRef {
        hash: ContentHash::of(parts.as_bytes()),
        size_bytes: 1,
        owners: Vec::new(),
    }
}

fn outcome(task: Task) -> TaskOutcome {
    match task {
        Task::Rollout(task) => {
            let named = |what: &str| blob(&format!("{what} {} {:?}", task.group, task.version));
            TaskOutcome::Rollout(RolloutResult {
                group: task.group,
                version: task.version.as_ref().map(|version| version.hash),
                x0: named("x0"),
                condition: named("condition"),
                sources_png: vec![named("source")],
                edits_png: vec![named("edit 0"), named("edit 1")],
                timings: RolloutTimings {
                    encode_s: 0.5,
                    ..RolloutTimings::default()
                },
            })
        }
        Task::Score(task) => {
            let score = |reward| SampleScore {
                reward,
                terms: vec![TermScore {
                    name: "edit".into(),
                    value: reward,
                    probabilities: [0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
                    entropy: 0.25,
                }],
            };
            TaskOutcome::Score(ScoreResult {
                group: task.group,
                edits: task.edits_png.iter().map(|edit| edit.hash).collect(),
                scores: vec![score(0.25), score(0.75)],
                unscored: Vec::new(),
                scoring_s: 0.125,
            })
        }
        Task::Train(task) => {
            assert_eq!(task.groups.len(), 2);
            TaskOutcome::Train(TrainResult {
                iteration: task.iteration,
                epoch: task.collective.epoch,
                state: blob(&format!("state {}", task.iteration)),
                version: blob(&format!("version {}", task.iteration)),
                ema_adapter: task.checkpoint.then(|| ContentHash::of(b"ema")),
                metrics: TrainMetrics {
                    policy_loss: 1.5,
                    ..TrainMetrics::default()
                },
            })
        }
        Task::Mint(_) => unreachable!("one rank meets nobody"),
    }
}

async fn work_to_the_end(channel: &Channel) {
    let mut peers = Vec::new();
    for role in Role::ALL {
        peers.push(tokio::spawn(Peer::join(channel, role).await.work()));
    }
    for peer in peers {
        peer.await.unwrap();
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work)
        .await
        .expect("a test that hangs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_over_sockets_ends_and_leaves_its_record() {
    in_time(async {
        let folder = Folder::new();
        let coordinator = start(&folder).await;
        let channel = connect(&folder.run_dir()).await;
        work_to_the_end(&channel).await;
        let outcome = coordinator.wait().await.unwrap();
        assert_eq!(outcome.iteration.0, 3);
        assert_eq!(outcome.ema_adapter, Some(ContentHash::of(b"ema")));
        let left = fs::read_dir(folder.run_dir()).unwrap();
        let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let record: Vec<String> = left.filter(|name| name.starts_with("run.db")).collect();
        assert_eq!(record, ["run.db"], "a copy of it is a copy of the record");

        let reader = Reader::open(&folder.run_dir()).unwrap();
        let iterations = reader.iterations().unwrap();
        assert_eq!(iterations.len(), 3);
        let metrics = &iterations[1];
        assert_eq!(
            (metrics.reward_mean, metrics.reward_std, metrics.kept),
            (0.5, 0.25, 2)
        );
        assert_eq!(
            (
                metrics.stage_s.rollout,
                metrics.stage_s.score,
                metrics.entropy_mean
            ),
            (1.0, 0.25, 0.25)
        );
        assert_eq!(metrics.train.unwrap().policy_loss, 1.5);
        let first = GroupQuery {
            iteration: Some(Iteration(1)),
            limit: 9,
            ..GroupQuery::default()
        };
        let lookup = Lookup::of_folder(&folder.run_dir());
        let groups = lookup.groups(&first, &AtWork::new()).unwrap();
        assert_eq!(
            (groups.len(), groups[0].state, groups[0].reward_mean),
            (2, GroupStage::Kept, Some(0.5))
        );
        let advantage = groups[1].candidates[1].advantage.unwrap();
        assert!(
            (advantage - 0.25 / (0.25 + 1e-4)).abs() < 1e-12,
            "{advantage}"
        );
        assert_eq!(groups[1].candidates[1].terms[0].entropy, 0.25);
        let adapters = reader.adapters().unwrap();
        assert_eq!(
            adapters
                .iter()
                .map(|(iteration, _)| iteration.0)
                .collect::<Vec<_>>(),
            [2, 3]
        );
        let events = reader.last_events(1_000).unwrap();
        assert_eq!(events.last().unwrap().kind, EventKind::Finished);

        // Started again, there is nothing left to do.
        let again = start(&folder).await.wait().await.unwrap();
        assert_eq!(
            (again.iteration, again.ema_adapter),
            (outcome.iteration, outcome.ema_adapter)
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_coordinator_goes_on_where_it_was_and_on_its_old_port() {
    in_time(async {
        let folder = Folder::new();
        let coordinator = start(&folder).await;
        let address = coordinator.address();
        let channel = connect(&folder.run_dir()).await;
        let mut rollout = Peer::join(&channel, Role::Rollout).await;
        let reply = rollout.report().await;
        let task = reply.assignments[0].clone();
        let result = TaskResult {
            lease: task.lease,
            outcome: outcome(task.task),
        };
        rollout.results.push(result);
        rollout.report().await;
        drop((rollout, channel, coordinator));

        let coordinator = restart(&folder).await;
        assert_eq!(coordinator.address(), address);
        let channel = connect(&folder.run_dir()).await;
        let status = status(&channel).await;
        assert_eq!(
            (status.groups.total, status.groups.sampled),
            (2, 1),
            "what was sampled is known"
        );
        work_to_the_end(&channel).await;
        assert_eq!(coordinator.wait().await.unwrap().iteration.0, 3);
    })
    .await;
}

/// Connections of the old coordinator may hold its port a moment longer.
async fn restart(folder: &Folder) -> Coordinator {
    let wanted =
        fs::read_to_string(RunFolder::new(folder.run_dir()).coordinator_address()).unwrap();
    for _ in 0..100 {
        if tokio::net::TcpListener::bind(wanted.trim()).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start(folder).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_see_pause_resume_and_follow() {
    in_time(async {
        let folder = Folder::new();
        let coordinator = start(&folder).await;
        let channel = connect(&folder.run_dir()).await;
        let mut control = ControlClient::new(channel.clone());
        let reply = control.pause(Request::new(PauseRequest {})).await.unwrap();
        assert_eq!(reply.into_inner().state, "paused");
        let mut rollout = Peer::join(&channel, Role::Rollout).await;
        assert!(
            rollout.report().await.assignments.is_empty(),
            "held until the wait was over, then nothing"
        );
        let seen = status(&channel).await;
        assert_eq!((seen.state, seen.workers.len()), (RunState::Paused, 1));

        let mut events = control
            .events(Request::new(EventsRequest {
                after_sequence: 1,
                follow: true,
            }))
            .await
            .unwrap()
            .into_inner();
        let reply = control
            .resume(Request::new(ResumeRequest {}))
            .await
            .unwrap();
        assert_eq!(reply.into_inner().state, "running");
        let mut kinds = Vec::new();
        while !kinds.ends_with(&[EventKind::Control]) || kinds.len() < 3 {
            let event = Event::try_from(events.next().await.unwrap().unwrap()).unwrap();
            assert_eq!(
                event.sequence,
                kinds.len() as u64 + 2,
                "past and present without gap"
            );
            kinds.push(event.kind);
        }
        assert_eq!(
            kinds,
            [
                EventKind::Control,
                EventKind::WorkerJoined,
                EventKind::Control
            ]
        );
        assert_eq!(rollout.report().await.assignments.len(), 1);
        drop(coordinator);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_and_unknown_workers_are_refused() {
    in_time(async {
        let folder = Folder::new();
        let coordinator = start(&folder).await;
        let channel = connect(&folder.run_dir()).await;
        let mut client = CoordinatorClient::new(channel.clone());
        let nonsense = ReportRequest {
            worker: "a b".into(),
            state: 2,
            ..ReportRequest::default()
        };
        let error = client.report(Request::new(nonsense)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(
            error.message().starts_with("report.worker: name \"a b\""),
            "{}",
            error.message()
        );
        let stranger = ReportRequest {
            worker: "nobody".into(),
            generation: 5,
            state: 2,
            ..ReportRequest::default()
        };
        let reply = client
            .report(Request::new(stranger))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            ReportReply::try_from(reply).unwrap().directive,
            Directive::Reregister
        );
        drop(coordinator);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_is_noticed() {
    in_time(async {
        let folder = Folder::new();
        let coordinator = start(&folder).await;
        let channel = connect(&folder.run_dir()).await;
        let mut reward = Peer::join(&channel, Role::Reward).await;
        let report = reward.next_report(Vec::new());
        let mut client = reward.client.clone();
        let held = client.report(Request::new(report.into()));
        assert!(
            tokio::time::timeout(Duration::from_millis(50), held)
                .await
                .is_err(),
            "it is held"
        );
        // Dropped by the timeout: after one heartbeat instead of three the worker is lost.
        let lost = async {
            while status(&channel).await.workers[0].state != retouch_proto::status::Presence::Lost {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let heartbeat = Duration::from_millis(folder.config.cluster.heartbeat_ms);
        assert!(tokio::time::timeout(2 * heartbeat, lost).await.is_ok());
        drop(coordinator);
    })
    .await;
}

#[tokio::test]
async fn what_is_wrong_with_a_start_is_told() {
    in_time(async {
        let folder = Folder::new();
        let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = taken.local_addr().unwrap();
        let error = refused(CoordinatorOptions {
            listen,
            ..folder.options()
        })
        .await;
        assert!(
            error.contains(&format!("cannot listen on {listen}")),
            "{error}"
        );

        let mut options = folder.options();
        options.config.rollout.group_size = 0;
        assert!(refused(options).await.contains("rollout.group_size: 0"));

        let mut options = folder.options();
        options.config.dataset.path = "/no/such".into();
        assert!(
            refused(options)
                .await
                .contains("/no/such/train_metadata.jsonl")
        );

        let mut options = folder.options();
        options.config.seed = 99;
        assert!(
            refused(options).await.contains("seed: 0 -> 99"),
            "the run folder is another run's"
        );

        let running = start(&folder).await;
        assert!(
            refused(folder.options())
                .await
                .contains("run.lock is locked")
        );
        drop(running);

        let blocked = folder.run_dir().with_file_name("file");
        fs::write(&blocked, "").unwrap();
        let error = refused(CoordinatorOptions {
            run_dir: blocked.join("run"),
            ..folder.options()
        })
        .await;
        assert!(error.contains("file/run"), "{error}");
    })
    .await;
}

async fn refused(options: CoordinatorOptions) -> String {
    Coordinator::start(options)
        .await
        .map(drop)
        .unwrap_err()
        .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_cannot_go_on_ends_with_its_reason() {
    in_time(async {
        let folder = Folder::new();
        let coordinator = start(&folder).await;
        let channel = connect(&folder.run_dir()).await;
        let mut rollout = Peer::join(&channel, Role::Rollout).await;
        loop {
            let reply = rollout.report().await;
            if reply.directive == Directive::Shutdown {
                break;
            }
            for assignment in reply.assignments {
                let failure = TaskFailure::lasting("no such model");
                let outcome = TaskOutcome::Failed(failure);
                rollout.results.push(TaskResult {
                    lease: assignment.lease,
                    outcome,
                });
            }
        }
        let error = coordinator.wait().await.unwrap_err();
        let ServeError::Run { iteration, reason } = &error else {
            panic!("{error}")
        };
        assert_eq!(iteration.0, 0);
        assert!(reason.contains("no such model"));
        // Whoever starts it again hears the same, until somebody says that it is to go on.
        let again = refused(folder.options()).await;
        assert_eq!(again, error.to_string());
        let stop = CancellationToken::new();
        let resumed = CoordinatorOptions {
            resume: true,
            stop: stop.clone(),
            ..folder.options()
        };
        let resumed = Coordinator::start(resumed).await.unwrap();
        // It is suspended at once, since nothing is to be written down, and goes on without being told to.
        stop.cancel();
        assert!(resumed.wait().await.unwrap().suspended);
        start(&folder).await;
    })
    .await;
}
