//! Every message survives the way to the wire and back, and bad ones name field and value.

use crate::blob::{BlobAddress, BlobRef, ContentHash};
use crate::ids::*;
use crate::lookup::{Attempts, GroupQuery, GroupStage};
use crate::pb;
use crate::status::{Controlled, Event, EventKind, RunState};
use crate::task::*;
use crate::worker::*;

fn hash(text: &str) -> ContentHash {
    ContentHash::of(text.as_bytes())
}

fn blob(text: &str) -> BlobRef {
    let owners = vec![
        BlobAddress::Grpc("10.0.0.1:4000".into()),
        BlobAddress::File("a/b".into()),
    ];
    BlobRef {
        hash: hash(text),
        size_bytes: text.len() as u64,
        owners,
    }
}

fn group() -> GroupId {
    GroupId {
        iteration: Iteration(3),
        index: 4,
    }
}

fn assignment(task: Task) -> Assignment {
    Assignment {
        lease: LeaseId(7),
        lease_ms: 60_000,
        task,
    }
}

fn rollout_task() -> RolloutTask {
    RolloutTask {
        group: group(),
        prompt: "make it blue".into(),
        requirement: "it is blue".into(),
        images: vec!["images/1.png".into(), "images/2.png".into()],
        version: Some(blob("version")),
        group_size: 12,
    }
}

fn train_task() -> TrainTask {
    TrainTask {
        iteration: Iteration(3),
        collective: CollectiveEpoch {
            epoch: Epoch(9),
            rank: 1,
            world: 2,
            peers: vec!["10.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()],
            unique_id: Some(UniqueId([3; UniqueId::BYTES])),
        },
        state: Some(blob("state")),
        versions: vec![blob("version")],
        groups: vec![TrainGroup {
            group: group(),
            x0: blob("x0"),
            condition: blob("condition"),
            version: Some(hash("version")),
            advantages: vec![0.25, -0.25],
        }],
        checkpoint: true,
        earlier: vec![EarlierPolicy {
            iteration: Iteration(2),
            adapter: blob("earlier"),
        }],
    }
}

fn rollout_result() -> RolloutResult {
    RolloutResult {
        group: group(),
        version: None,
        x0: blob("x0"),
        condition: blob("condition"),
        sources_png: vec![blob("source"), blob("other source")],
        edits_png: vec![blob("edit 0"), blob("edit 1")],
        timings: RolloutTimings {
            encode_s: 0.5,
            sample_s: 1.5,
            decode_s: 0.25,
        },
    }
}

fn score_result(reward: f64) -> ScoreResult {
    let term = TermScore {
        name: "edit".into(),
        value: reward,
        probabilities: [0.0, 0.1, 0.2, 0.3, 0.4, 0.0],
        entropy: 1.25,
    };
    ScoreResult {
        group: group(),
        edits: vec![hash("edit 0")],
        scores: vec![SampleScore {
            reward,
            terms: vec![term],
        }],
        unscored: vec![TermFailure {
            term: "watched".into(),
            reason: "not finite".into(),
        }],
        scoring_s: 0.75,
    }
}

fn train_result() -> TrainResult {
    TrainResult {
        iteration: Iteration(3),
        epoch: Epoch(9),
        state: blob("state"),
        version: blob("version"),
        ema_adapter: Some(hash("ema")),
        metrics: TrainMetrics {
            policy_loss: 1.0,
            grad_norm: 2.0,
            learning_rate: 1e-3,
            pairs: 60,
            ..TrainMetrics::default()
        },
    }
}

fn report(outcomes: Vec<TaskOutcome>) -> Report {
    let results = outcomes.into_iter().map(|outcome| TaskResult {
        lease: LeaseId(7),
        outcome,
    });
    Report {
        worker: WorkerId::new("rollout-0").unwrap(),
        generation: Generation(5),
        sequence: 6,
        state: WorkerState::Ready,
        slots_free: 1,
        running: vec![LeaseId(8)],
        results: results.collect(),
        blobs_added: vec![hash("a")],
        blobs_dropped: vec![hash("b")],
    }
}

#[test]
fn assignments_round_trip() {
    let score = ScoreTask {
        group: group(),
        prompt: "p".into(),
        requirement: "r".into(),
        sources_png: vec![blob("source"), blob("other source")],
        edits_png: vec![blob("edit")],
    };
    for task in [
        Task::Rollout(rollout_task()),
        Task::Score(score),
        Task::Train(train_task()),
        Task::Mint(MintTask { epoch: Epoch(9) }),
    ] {
        let assignment = assignment(task);
        assert_eq!(
            Assignment::try_from(pb::Assignment::from(assignment.clone())),
            Ok(assignment)
        );
    }
}

#[test]
fn reports_round_trip() {
    let failure = TaskFailure {
        lost_blobs: vec![hash("x0")],
        ..TaskFailure::disk_full("no space left on device")
    };
    let report = report(vec![
        TaskOutcome::Rollout(rollout_result()),
        TaskOutcome::Score(score_result(0.5)),
        TaskOutcome::Train(train_result()),
        TaskOutcome::Mint(MintResult {
            epoch: Epoch(9),
            unique_id: UniqueId([3; UniqueId::BYTES]),
        }),
        TaskOutcome::Failed(failure),
    ]);
    assert_eq!(
        Report::try_from(pb::ReportRequest::from(report.clone())),
        Ok(report)
    );
}

#[test]
fn replies_round_trip() {
    for directive in [
        Directive::Continue,
        Directive::Reregister,
        Directive::Shutdown,
    ] {
        let reply = ReportReply {
            assignments: vec![assignment(Task::Train(train_task()))],
            cancel: vec![LeaseId(1)],
            prefetch: vec![blob("x0")],
            directive,
            committed: Iteration(2),
        };
        assert_eq!(
            ReportReply::try_from(pb::ReportReply::from(reply.clone())),
            Ok(reply)
        );
    }
}

#[test]
fn registrations_round_trip() {
    for (role, collective) in [(Role::Rollout, None), (Role::Learner, Some("10.0.0.1:9"))] {
        let registration = Registration {
            worker: WorkerId::new("w").unwrap(),
            role,
            slots: 2,
            device: "cpu".into(),
            blob_address: BlobAddress::Grpc("10.0.0.1:4000".into()),
            collective_address: collective.map(|address| address.parse().unwrap()),
            holds: vec![hash("x")],
            running: vec![RunningTask {
                lease: LeaseId(3),
                kind: role,
                group: Some(group()),
            }],
        };
        let message = pb::RegisterRequest::from(registration.clone());
        assert_eq!(Registration::try_from(message), Ok(registration));
    }
    let registered = Registered {
        generation: Generation(1),
        run: RunId::new("run").unwrap(),
        config_toml: "seed = 1\n".into(),
    };
    assert_eq!(
        Registered::try_from(pb::RegisterReply::from(registered.clone())),
        Ok(registered)
    );
}

#[test]
fn events_round_trip() {
    for kind in EventKind::ALL {
        let event = Event {
            sequence: 1,
            time_unix_ms: 2,
            iteration: Iteration(3),
            kind,
            message: "m".into(),
        };
        assert_eq!(Event::try_from(pb::Event::from(event.clone())), Ok(event));
    }
}

#[test]
fn what_people_say_and_hear_round_trips() {
    for state in RunState::ALL {
        let said = Controlled {
            state,
            message: "as you wish".into(),
        };
        assert_eq!(
            Controlled::try_from(pb::ControlReply::from(said.clone())),
            Ok(said)
        );
    }
    let query = GroupQuery {
        iteration: Some(Iteration(0)),
        index: Some(7),
        prompt: Some("red".into()),
        stage: Some(GroupStage::Dropped),
        attempts: Attempts::All,
        limit: 9,
    };
    for query in [query, GroupQuery::default()] {
        assert_eq!(
            GroupQuery::try_from(pb::GroupsRequest::from(query.clone())),
            Ok(query)
        );
    }
    let unknown = pb::GroupsRequest {
        state: "gone".into(),
        ..pb::GroupsRequest::default()
    };
    let error = GroupQuery::try_from(unknown).unwrap_err().to_string();
    assert_eq!(error, "groups.state: \"gone\" is unknown");
}

/// A5: neither a reward out of range nor a missing one passes for a score; the report still does.
#[test]
fn invalid_results_become_failures_with_the_reason() {
    for (reward, named) in [(f64::NAN, "NaN"), (1.5, "1.5"), (-0.1, "-0.1")] {
        let message =
            pb::ReportRequest::from(report(vec![TaskOutcome::Score(score_result(reward))]));
        let report = Report::try_from(message).unwrap();
        let TaskOutcome::Failed(failure) = &report.results[0].outcome else {
            panic!("{report:?}")
        };
        assert_eq!(
            failure.reason,
            format!("invalid result: score.reward: {named} is not in 0..=1")
        );
        assert!(failure.retryable);
    }
}

#[test]
fn bad_messages_name_field_and_value() {
    let mut message = pb::ReportRequest::from(report(Vec::new()));
    message.slots_free = 1_000;
    let error = Report::try_from(message).unwrap_err().to_string();
    assert_eq!(error, "report.slots_free: 1000, at most 256 are allowed");

    let mut message = pb::TrainTask::from(train_task());
    message.collective.as_mut().unwrap().rank = 2;
    let error = TrainTask::try_from(message).unwrap_err().to_string();
    assert_eq!(error, "collective: rank 2 of 2 with 2 peers");

    let mut message = pb::RolloutTask::from(rollout_task());
    message.prompt = "x".repeat(20_000);
    let error = RolloutTask::try_from(message).unwrap_err().to_string();
    assert_eq!(
        error,
        "rollout.prompt: 20000 bytes, at most 16384 are allowed"
    );

    let error = Assignment::try_from(pb::Assignment::default())
        .unwrap_err()
        .to_string();
    assert_eq!(error, "assignment.task: is missing");
}

#[test]
fn long_reasons_are_cut_at_a_character() {
    let reason = "ü".repeat(5_000);
    let failure = TaskFailure::lasting(reason);
    let failure = TaskFailure::try_from(pb::TaskFailure::from(failure)).unwrap();
    assert_eq!(failure.reason, "ü".repeat(2_048));
}
