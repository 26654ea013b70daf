//! Messages from outside are refused or understood, never worse.

use prost::Message;
use retouch_hostile::bombard;
use retouch_proto::grpc;
use retouch_proto::status::Event;
use retouch_proto::task::{
    Assignment, InlineGroup, RolloutResult, RolloutTask, RolloutTimings, Task, TaskFailure,
    TaskOutcome, TaskResult,
};
use retouch_proto::worker::{
    Directive, Registered, Registration, Report, ReportReply, Role, RunningTask, WorkerState,
};
use retouch_proto::{
    BlobAddress, BlobRef, ContentHash, Generation, GroupId, Iteration, LeaseId, RunConfig, RunId,
    WorkerId,
};

const GROUP: GroupId = GroupId {
    iteration: Iteration(3),
    index: 7,
};

fn blob(name: &str) -> BlobRef {
    BlobRef {
        hash: ContentHash::of(name.as_bytes()),
        size_bytes: 12,
        owners: vec![
            BlobAddress::Grpc("10.0.0.1:4000".into()),
            BlobAddress::File("checkpoints/3/state.safetensors".into()),
        ],
    }
}

fn worker() -> WorkerId {
    WorkerId::new("rollout-0").unwrap()
}

/// Whatever message the bytes are, it is understood or refused.
fn take<M, T>(bytes: &[u8])
where
    M: Message + Default,
    T: TryFrom<M>,
{
    if let Ok(message) = M::decode(bytes) {
        let _ = T::try_from(message);
    }
}

#[test]
fn registrations() {
    let registration = Registration {
        worker: worker(),
        role: Role::Learner,
        slots: 2,
        device: "cuda:0".into(),
        blob_address: BlobAddress::Grpc("10.0.0.1:4000".into()),
        collective_address: Some("10.0.0.1:5000".parse().unwrap()),
        holds: vec![ContentHash::of(b"a"), ContentHash::of(b"b")],
        running: vec![RunningTask {
            lease: LeaseId(9),
            kind: Role::Rollout,
            group: Some(GROUP),
        }],
    };
    let valid = grpc::RegisterRequest::from(registration).encode_to_vec();
    bombard(&valid, take::<grpc::RegisterRequest, Registration>);
    let registered = Registered {
        generation: Generation(4),
        run: RunId::new("run").unwrap(),
        config_toml: RunConfig::default().to_toml(),
    };
    let valid = grpc::RegisterReply::from(registered).encode_to_vec();
    bombard(&valid, take::<grpc::RegisterReply, Registered>);
}

#[test]
fn reports() {
    let result = RolloutResult {
        group: GROUP,
        version: Some(ContentHash::of(b"version")),
        x0: blob("x0"),
        condition: blob("condition"),
        sources_png: vec![blob("source")],
        edits_png: vec![blob("edit 0"), blob("edit 1")],
        timings: RolloutTimings::default(),
    };
    let failure = TaskFailure {
        lost_blobs: vec![ContentHash::of(b"lost")],
        ..TaskFailure::retryable("no such model")
    };
    let outcomes = [TaskOutcome::Rollout(result), TaskOutcome::Failed(failure)];
    let report = Report {
        worker: worker(),
        generation: Generation(4),
        sequence: 5,
        state: WorkerState::Ready,
        slots_free: 1,
        running: vec![LeaseId(9)],
        results: outcomes
            .into_iter()
            .map(|outcome| TaskResult {
                lease: LeaseId(8),
                outcome,
            })
            .collect(),
        blobs_added: vec![ContentHash::of(b"a")],
        blobs_dropped: vec![ContentHash::of(b"b")],
    };
    let valid = grpc::ReportRequest::from(report).encode_to_vec();
    bombard(&valid, take::<grpc::ReportRequest, Report>);
}

#[test]
fn replies() {
    let task = RolloutTask {
        group: GROUP,
        prompt: "add a dot".into(),
        requirement: "a dot".into(),
        images: vec!["images/a.png".into()],
        version: Some(blob("version")),
        group_size: 4,
    };
    let reply = ReportReply {
        assignments: vec![Assignment {
            lease: LeaseId(9),
            lease_ms: 60_000,
            task: Task::Rollout(task),
        }],
        cancel: vec![LeaseId(8)],
        prefetch: vec![blob("x0")],
        directive: Directive::Continue,
        committed: Iteration(2),
    };
    let valid = grpc::ReportReply::from(reply).encode_to_vec();
    bombard(&valid, take::<grpc::ReportReply, ReportReply>);
}

#[test]
fn groups_for_the_judge_and_events() {
    let group = grpc::ScoreGroupRequest {
        prompt: "add a dot".into(),
        requirement: "a dot".into(),
        sources_png: vec![vec![1; 30].into()],
        edits_png: vec![vec![2; 30].into(), vec![3; 30].into()],
    };
    bombard(
        &group.encode_to_vec(),
        take::<grpc::ScoreGroupRequest, InlineGroup>,
    );
    let event = grpc::Event {
        sequence: 5,
        time_unix_ms: 6,
        iteration: 7,
        kind: "finished".into(),
        message: "done".into(),
    };
    bombard(&event.encode_to_vec(), take::<grpc::Event, Event>);
}

#[test]
fn run_files_and_addresses() {
    bombard(RunConfig::default().to_toml().as_bytes(), |bytes| {
        let _ = RunConfig::from_toml(&String::from_utf8_lossy(bytes));
    });
    bombard(b"file:checkpoints/3/state.safetensors", |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(BlobAddress::File(path)) = text.parse() {
            assert!(!path.starts_with('/') && !path.split('/').any(|part| part == ".."));
        }
    });
}
