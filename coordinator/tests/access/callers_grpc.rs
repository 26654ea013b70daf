//! Callers with the wrong certificate, or none (A2).

use std::sync::Arc;

use retouch_coordinator::{Admission, Coordinator, CoordinatorOptions};
use retouch_credentials::access::Peer;
use retouch_credentials::{Access, Authority, Principal, explain, is_distrust};
use retouch_proto::grpc::control_client::ControlClient;
use retouch_proto::grpc::coordinator_client::CoordinatorClient;
use retouch_proto::grpc::{
    CheckpointRequest, ConfigRequest, DrainRequest, EventsRequest, GroupsRequest, PauseRequest,
    RegisterReply, ReportRequest, RestartRequest, ResumeRequest, StatusRequest, StopRequest,
    VersionsRequest,
};
use retouch_proto::limits::MESSAGE_BYTES_MAX;
use retouch_proto::status::RunStatus;
use retouch_proto::worker::Role;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Response, Status};

use crate::common::{Folder, registration};

const ROLLOUT: Principal = Principal::Worker(Role::Rollout);
const LEARNER: Principal = Principal::Worker(Role::Learner);
const ATTEMPTS_MAX: usize = 20;

/// A coordinator with an authority of its own.
struct Run {
    authority: Arc<Authority>,
    coordinator: Coordinator,
    _folder: Folder,
}

impl Run {
    async fn start() -> Self {
        let folder = Folder::new();
        let authority = authority();
        let options = CoordinatorOptions {
            admission: Admission::Authority(authority.clone()),
            ..folder.options()
        };
        Self {
            coordinator: Coordinator::start(options).await.unwrap(),
            authority,
            _folder: folder,
        }
    }

    fn channel(&self, access: Access) -> Channel {
        let address = self.coordinator.address().to_string();
        access
            .endpoint(&address, Peer::Coordinator)
            .unwrap()
            .connect_lazy()
    }

    fn channel_as(&self, principal: Principal) -> Channel {
        self.channel(self.authority.issue(principal).unwrap().into())
    }

    /// Believes the coordinator, but has nothing to show.
    fn channel_of_nobody(&self) -> Channel {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.authority.certificate_pem()))
            .domain_name(Principal::Coordinator.dns_name());
        let address = format!("https://{}", self.coordinator.address());
        let endpoint = Channel::from_shared(address).unwrap().tls_config(tls);
        endpoint.unwrap().connect_lazy()
    }

    async fn status(&self) -> RunStatus {
        let mut control = ControlClient::new(self.channel_as(Principal::Control));
        let reply = control.status(StatusRequest {}).await.unwrap();
        reply.into_inner().try_into().unwrap()
    }
}

fn authority() -> Arc<Authority> {
    let folder = tempfile::tempdir().unwrap();
    Arc::new(Authority::open_or_create(folder.path()).unwrap())
}

async fn register(
    channel: &Channel,
    worker: &str,
    role: Role,
) -> Result<Response<RegisterReply>, Status> {
    let mut client = CoordinatorClient::new(channel.clone());
    client
        .register(tonic::Request::new(registration(worker, role).into()))
        .await
}

/// The code and text of every control call.
async fn control(channel: &Channel) -> Vec<Result<(), Status>> {
    let mut client = ControlClient::new(channel.clone());
    vec![
        client.status(StatusRequest {}).await.map(drop),
        client.events(EventsRequest::default()).await.map(drop),
        client.pause(PauseRequest {}).await.map(drop),
        client.resume(ResumeRequest {}).await.map(drop),
        client.groups(GroupsRequest::default()).await.map(drop),
        client.versions(VersionsRequest {}).await.map(drop),
        client.drain(DrainRequest::default()).await.map(drop),
        client.stop(StopRequest {}).await.map(drop),
    ]
}

/// The answers to what can only be done to a worker that is there, or with something to write down.
async fn orders(channel: &Channel) -> Vec<Status> {
    let mut client = ControlClient::new(channel.clone());
    let worker = "nobody".to_owned();
    let answers = [
        client.restart(RestartRequest { worker }).await.map(drop),
        client.checkpoint(CheckpointRequest {}).await.map(drop),
    ];
    answers.into_iter().filter_map(Result::err).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_without_a_certificate_is_heard() {
    let run = Run::start().await;
    let nobody = run.channel_of_nobody();
    for refused in control(&nobody).await {
        let status = refused.unwrap_err();
        let expected = "no client certificate was presented; this call needs one of control";
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unauthenticated, expected)
        );
    }
    let refused = orders(&nobody).await;
    assert_eq!(refused.len(), 2);
    for status in refused {
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    }
    let mut client = ControlClient::new(nobody.clone());
    let status = client.config(ConfigRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    let status = register(&nobody, "rollout-0", Role::Rollout)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    let plain = run.channel(Access::Open);
    register(&plain, "rollout-0", Role::Rollout)
        .await
        .unwrap_err();
    assert!(run.status().await.workers.is_empty());
}

/// What the coordinator says to a registration. A caller has finished its part of the handshake before the
/// coordinator has seen the certificate, so that a connection may be closed before its alert is read.
async fn refusal(run: &Run, access: Access) -> Status {
    let mut last = None;
    for _ in 0..ATTEMPTS_MAX {
        let channel = run.channel(access.clone());
        let answer = register(&channel, "rollout-0", Role::Rollout).await;
        let status = answer.unwrap_err();
        if is_distrust(&status) {
            return status;
        }
        last = Some(status);
    }
    last.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_another_run_are_refused_by_both_sides() {
    let run = Run::start().await;
    let other = authority();
    // It does not believe this coordinator.
    let stranger = run.channel(other.issue(ROLLOUT).unwrap().into());
    let status = register(&stranger, "rollout-0", Role::Rollout)
        .await
        .unwrap_err();
    assert!(is_distrust(&status), "{status:?}");
    assert!(
        explain(&status).contains("UnknownIssuer"),
        "{}",
        explain(&status)
    );
    // Nor does this coordinator believe it: the other run's certificate, with this run's authority.
    let folder = tempfile::tempdir().unwrap();
    other.issue(ROLLOUT).unwrap().write(folder.path()).unwrap();
    std::fs::write(
        folder.path().join("ca.pem"),
        run.authority.certificate_pem(),
    )
    .unwrap();
    let forged = retouch_credentials::Credentials::load(folder.path()).unwrap();
    let status = refusal(&run, forged.into()).await;
    assert!(is_distrust(&status), "{status:?}");
    assert!(
        explain(&status).contains("received fatal alert"),
        "{}",
        explain(&status)
    );
    // A worker does not take a fellow worker for the coordinator.
    assert!(run.status().await.workers.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_do_not_steer_and_people_do_not_work() {
    let run = Run::start().await;
    for refused in control(&run.channel_as(ROLLOUT)).await {
        let status = refused.unwrap_err();
        let expected =
            "the client certificate is for rollout-worker, this call needs one of control";
        assert_eq!(
            (status.code(), status.message()),
            (Code::PermissionDenied, expected)
        );
    }
    let refused = orders(&run.channel_as(ROLLOUT)).await;
    assert_eq!(refused.len(), 2);
    for status in refused {
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    }
    let status = register(
        &run.channel_as(Principal::Control),
        "rollout-0",
        Role::Rollout,
    )
    .await;
    assert_eq!(status.unwrap_err().code(), Code::PermissionDenied);
    for status in orders(&run.channel_as(Principal::Control)).await {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    }
    for answered in control(&run.channel_as(Principal::Control)).await {
        answered.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_may_join_may_read_the_run_file() {
    let run = Run::start().await;
    for principal in Principal::JOINING {
        let mut client = ControlClient::new(run.channel_as(principal));
        let reply = client.config(ConfigRequest {}).await.unwrap();
        let text = reply.into_inner().config_toml;
        assert!(text.contains("group_size = 2"), "{principal}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_speaks_for_its_role_and_name_alone() {
    let run = Run::start().await;
    let (rollout, learner) = (run.channel_as(ROLLOUT), run.channel_as(LEARNER));
    let denied = |status: Status, said: &str| {
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(status.message().contains(said), "{status}");
    };
    let status = register(&rollout, "learner-0", Role::Learner)
        .await
        .unwrap_err();
    denied(status, "learner-0 is a learner worker");
    let reply = register(&learner, "learner-0", Role::Learner)
        .await
        .unwrap();
    let status = register(&rollout, "learner-0", Role::Rollout)
        .await
        .unwrap_err();
    denied(status, "the name learner-0 belongs to a learner worker");
    let report = ReportRequest {
        worker: "learner-0".into(),
        generation: reply.into_inner().generation,
        sequence: 1,
        state: 3,
        ..ReportRequest::default()
    };
    let status = CoordinatorClient::new(rollout)
        .report(report.clone())
        .await
        .unwrap_err();
    denied(status, "learner-0 is a learner worker");
    CoordinatorClient::new(learner)
        .report(report)
        .await
        .unwrap();
    assert_eq!(run.status().await.workers.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_messages_are_refused_and_leave_nothing() {
    let run = Run::start().await;
    let rollout = run.channel_as(ROLLOUT);
    let mut long = registration("rollout-0", Role::Rollout);
    long.device = "x".repeat(MESSAGE_BYTES_MAX + 1);
    let mut client = CoordinatorClient::new(rollout.clone());
    let status = client
        .register(tonic::Request::new(long.into()))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert!(
        status.message().contains(&MESSAGE_BYTES_MAX.to_string()),
        "{status}"
    );
    assert!(run.status().await.workers.is_empty());
    // The same connection is of use for a message of the right size.
    register(&rollout, "rollout-0", Role::Rollout)
        .await
        .unwrap();
    assert_eq!(run.status().await.workers.len(), 1);
}
