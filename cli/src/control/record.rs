//! The record of a run without a coordinator, and who works in its folder all the same.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use anyhow::Context;
use retouch_coordinator::{lookup::Lookup, store::Reader};
use retouch_proto::{
    RunConfig, RunFolder,
    status::{RunState, RunStatus},
};
use serde::Serialize;

use super::{control_grpc::ControlClient, target::Target};
use crate::{
    evaluating::Evaluating,
    exit::{Unreachable, UsageError},
};

/// The record in the run's folder, for a run without a coordinator; `error` if there is none.
pub(super) fn record_of(target: &Target, error: anyhow::Error) -> anyhow::Result<Lookup> {
    let folder = recorded_folder(target, error).map_err(|error| unrecorded(target, error))?;
    Ok(Lookup::of_folder(folder.path()))
}

/// Looking things up without a coordinator needs a record, and waiting brings none.
fn unrecorded(target: &Target, error: anyhow::Error) -> anyhow::Error {
    match target.run_folder() {
        Some(folder) if error.is::<Unreachable>() => {
            let folder = folder.display();
            UsageError(format!("{folder} is no run folder: it has no record")).into()
        }
        _ => error,
    }
}

/// A run as people see it: by its coordinator, or by its record.
#[derive(Debug, Clone, Serialize)]
pub(super) struct View {
    #[serde(flatten)]
    pub(super) status: RunStatus,
    /// There if the record was asked, since no coordinator answers.
    #[serde(flatten)]
    pub(super) recorded: Option<Recorded>,
}

/// Who works on a run whose coordinator does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Recorded {
    /// Whether a coordinator is there, silent as it is.
    pub(super) coordinator: Coordinator,
    /// Whether a launch is at work in the folder.
    pub(super) launch: bool,
    /// How far its held-out evaluation is, if it has come to that.
    pub(super) evaluation: Option<Evaluating>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Coordinator {
    /// One holds the record, but does not answer: it starts or ends.
    Silent,
    /// None holds the record.
    Ended,
}

impl View {
    /// Asks the coordinator; if none answers, reads the record where the run's folder is here.
    ///
    /// # Errors
    /// If there is neither.
    pub(super) async fn of(target: &Target) -> anyhow::Result<Self> {
        let status = async { ControlClient::connect(target).await?.status().await };
        match status.await {
            Ok(status) => Ok(Self {
                status,
                recorded: None,
            }),
            Err(error) => Self::of_record(target, error),
        }
    }

    /// What the record says of a run whose coordinator does not answer.
    ///
    /// # Errors
    /// If the run's folder is not here, `error`.
    pub(super) fn of_record(target: &Target, error: anyhow::Error) -> anyhow::Result<Self> {
        let folder = recorded_folder(target, error)?;
        let config = recorded_config(&folder)?;
        let status = Reader::open(folder.path())?.status(&config)?;
        Ok(Self {
            status,
            recorded: Some(Recorded::of(&folder)),
        })
    }

    /// Whether nobody works on the run any more, or all is done but what comes after the training.
    pub(super) fn is_over(&self) -> bool {
        let left =
            |recorded: &Recorded| recorded.coordinator == Coordinator::Ended && !recorded.launch;
        self.status.state.is_over() || self.recorded.as_ref().is_some_and(left)
    }

    /// Who does what, where it is not the coordinator that says so.
    pub(super) fn note(&self) -> Option<String> {
        Some(self.recorded.as_ref()?.note(&self.status))
    }
}

impl Recorded {
    fn of(folder: &RunFolder) -> Self {
        let launch = is_held(&folder.launch_lock());
        let evaluation = Evaluating::load(folder).filter(|_| launch);
        Self {
            coordinator: match is_held(&folder.record_lock()) {
                true => Coordinator::Silent,
                false => Coordinator::Ended,
            },
            launch,
            evaluation,
        }
    }

    fn note(&self, status: &RunStatus) -> String {
        if self.coordinator == Coordinator::Silent {
            return "the coordinator does not answer; this is what it has recorded".to_owned();
        }
        let ended = "the coordinator has ended";
        match (self.evaluation, self.launch) {
            (Some(Evaluating { done, pairs }), _) => {
                format!("{ended}; evaluating, {done} of {pairs} pairs")
            }
            (None, true) => format!("{ended}; `launch` is still at work"),
            (None, false) if status.state.is_over() => ended.to_owned(),
            (None, false) => format!(
                "{ended}, and nobody works on the run: {}",
                match status.state {
                    RunState::Paused =>
                        "it was paused; `launch` takes it up, `resume` continues it",
                    _ => "the same `launch` continues it",
                }
            ),
        }
    }
}

/// The resolved run file in a run's folder.
pub(crate) fn recorded_config(folder: &RunFolder) -> anyhow::Result<RunConfig> {
    let file = folder.config();
    let text = std::fs::read_to_string(&file).with_context(|| {
        let folder = folder.path().display();
        UsageError(format!(
            "{folder} is not a run folder: it has no config.toml"
        ))
    })?;
    let config = RunConfig::from_toml(&text);
    Ok(config.map_err(|errors| UsageError(format!("{}: {errors}", file.display())))?)
}

/// Whether a process holds this lock.
pub(crate) fn is_held(lock: &Path) -> bool {
    File::open(lock)
        .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// The folder of a run that no coordinator answers for. An answer that is not believed counts too if nobody holds the
/// record: the port belongs to somebody else by now.
fn recorded_folder(target: &Target, error: anyhow::Error) -> anyhow::Result<RunFolder> {
    let Some(folder) = target.run_folder().map(RunFolder::new) else {
        return Err(error);
    };
    if !error.is::<Unreachable>() && is_held(&folder.record_lock()) {
        return Err(error);
    }
    // A launch that has just begun has no record yet.
    match folder.record().is_file() {
        true => Ok(folder),
        false => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::tests::sample;

    #[test]
    fn who_works_on_a_run_without_a_coordinator_is_said() {
        let mut status = sample();
        let note = |launch, evaluation, status: &RunStatus| {
            let coordinator = Coordinator::Ended;
            let recorded = Recorded {
                coordinator,
                launch,
                evaluation,
            };
            recorded.note(status)
        };
        let evaluation = Some(Evaluating {
            done: 12,
            pairs: 64,
        });
        let interrupted = note(false, None, &status);
        assert!(
            interrupted.ends_with("the same `launch` continues it"),
            "{interrupted}"
        );
        status.state = RunState::Finished;
        assert_eq!(
            note(true, evaluation, &status),
            "the coordinator has ended; evaluating, 12 of 64 pairs"
        );
        assert!(note(true, None, &status).ends_with("`launch` is still at work"));
        assert_eq!(note(false, None, &status), "the coordinator has ended");
    }

    #[test]
    fn only_a_living_launch_evaluates() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let folder = RunFolder::new(place.path());
        let evaluating = Evaluating { done: 1, pairs: 2 };
        evaluating.save(&folder);
        let lock = File::create(folder.launch_lock()).expect("a lock");
        assert_eq!(Recorded::of(&folder).evaluation, None, "it died");
        lock.lock().expect("locked");
        let recorded = Recorded::of(&folder);
        assert_eq!(
            (recorded.launch, recorded.evaluation),
            (true, Some(evaluating))
        );
        Evaluating::forget(&folder);
        assert_eq!(Recorded::of(&folder).evaluation, None, "it is done");
    }

    #[test]
    fn json_of_the_record_has_the_fields_of_a_status() {
        let keys = |recorded| {
            let status = sample();
            let view = serde_json::to_value(View { status, recorded }).expect("JSON");
            view.as_object()
                .expect("fields")
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        let live = keys(None);
        let recorded = keys(Some(Recorded {
            coordinator: Coordinator::Ended,
            launch: false,
            evaluation: None,
        }));
        assert!(live.iter().all(|key| recorded.contains(key)));
        assert_eq!(recorded.len(), live.len() + 3, "{recorded:?}");
    }
}
