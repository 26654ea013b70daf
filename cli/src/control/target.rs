//! Which run a command means.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use clap_complete::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, engine::ValueCompleter,
};
use retouch_credentials::{Access, Principal};
use retouch_proto::{RunFolder, WorkerId};
use retouch_worker::session::CoordinatorAddress;

use crate::{
    credentials::{CredentialArgs, in_run_folder},
    exit::{Unreachable, UsageError},
};

/// How long a coordinator may take to answer a command line.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Where the examples have their runs.
const USUAL: &str = "runs/";
const NO_RUN: &str = "name a run folder, or give --coordinator with --token or --credentials";

/// How a run is reached whose folder is not here.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Remote {
    /// The coordinator's address, for a run whose folder is not on this machine.
    #[arg(long, value_name = "HOST:PORT", help_heading = "Another machine's run")]
    pub(crate) coordinator: Option<String>,
    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
}

/// Which run a command means.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// The run's folder, as `launch` printed it.
    #[arg(
        value_name = "RUN_FOLDER",
        add = run_folders(),
        required_unless_present = "coordinator",
        conflicts_with = "coordinator"
    )]
    run: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

impl Target {
    /// A target by its run folder.
    pub(crate) fn folder(run: PathBuf) -> Self {
        Self {
            run: Some(run),
            remote: Remote::default(),
        }
    }

    /// A target by its address.
    pub(crate) fn remote(remote: Remote) -> Self {
        Self { run: None, remote }
    }

    /// The run folder, where it is here.
    pub(crate) fn run_folder(&self) -> Option<&PathBuf> {
        self.run.as_ref()
    }

    /// The coordinator's address, read from the run folder where none was given.
    pub(crate) fn address(&self) -> anyhow::Result<String> {
        if let Some(address) = &self.remote.coordinator {
            return Ok(address.clone());
        }
        self.read_address()
    }

    /// Access as someone who controls the run: the run folder has it where nothing else was given.
    pub(crate) async fn access(&self, address: &str) -> anyhow::Result<Access> {
        let address = CoordinatorAddress::from(address.to_owned());
        let own = self
            .run
            .as_deref()
            .map(|run| in_run_folder(run, Principal::Control));
        self.remote
            .credentials
            .access(Principal::Control, &address, own, ANSWER_MAX)
            .await
    }

    fn read_address(&self) -> anyhow::Result<String> {
        let Some(run) = &self.run else {
            return Err(UsageError(NO_RUN.to_owned()).into());
        };
        let file = RunFolder::new(run).coordinator_address();
        let text = std::fs::read_to_string(&file).with_context(|| {
            Unreachable(format!(
                "no coordinator runs in {}: can't read {}",
                run.display(),
                file.display()
            ))
        })?;
        Ok(text.trim().to_owned())
    }
}

/// Completes an argument that is a run's folder.
pub(crate) fn run_folders() -> ArgValueCompleter {
    ArgValueCompleter::new(offered_runs)
}

/// Run folders, and before something is typed those of the usual place; then other folders, which may have some.
pub(super) fn offered_runs(current: &OsStr) -> Vec<CompletionCandidate> {
    let is_run = |path: &Path| RunFolder::new(path).record().exists();
    let below = |begun: &OsStr| PathCompleter::any().filter(is_run).complete(begun);
    let mut found = Vec::new();
    if current.is_empty() {
        let usual = below(OsStr::new(USUAL)).into_iter();
        found.extend(usual.filter(|folder| is_run(folder.get_value().as_ref())));
    }
    found.extend(below(current));
    found
}

/// Takes apart the words of a command that may name a worker: the folder comes first unless the run is remote.
pub(super) fn run_and_worker(
    words: &[String],
    remote: &Remote,
) -> anyhow::Result<(Target, Option<WorkerId>)> {
    let (target, rest) = match (&remote.coordinator, words) {
        (Some(_), rest) => (Target::remote(remote.clone()), rest),
        (None, [folder, rest @ ..]) => {
            let (run, remote) = (Some(folder.into()), remote.clone());
            (Target { run, remote }, rest)
        }
        (None, []) => {
            return Err(UsageError(NO_RUN.to_owned()).into());
        }
    };
    let worker = match rest {
        [] => None,
        [name] => {
            let id = WorkerId::new(name.clone());
            Some(id.map_err(|error| UsageError(error.to_string()))?)
        }
        _ => {
            let problem = format!("{words:?}: with --coordinator, give the worker's name alone");
            return Err(UsageError(problem).into());
        }
    };
    Ok((target, worker))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_folder_comes_first_unless_the_run_is_remote() {
        let here = Remote::default();
        let (target, worker) = run_and_worker(&words(&["runs/x", "learner-0"]), &here).unwrap();
        assert_eq!(target.run, Some(PathBuf::from("runs/x")));
        assert_eq!(worker.unwrap().as_str(), "learner-0");
        let (target, worker) = run_and_worker(&words(&["runs/x"]), &here).unwrap();
        assert_eq!((target.run, worker), (Some(PathBuf::from("runs/x")), None));

        let remote = Remote {
            coordinator: Some("host:1".into()),
            ..Remote::default()
        };
        let (target, worker) = run_and_worker(&words(&["learner-0"]), &remote).unwrap();
        assert_eq!(target.address().unwrap(), "host:1");
        assert_eq!(worker.unwrap().as_str(), "learner-0");
        let (_, worker) = run_and_worker(&[], &remote).unwrap();
        assert_eq!(worker, None);
    }

    #[test]
    fn words_too_few_or_too_many_or_strange_are_usage_errors() {
        let here = Remote::default();
        let remote = Remote {
            coordinator: Some("host:1".into()),
            ..Remote::default()
        };
        for (given, remote) in [
            (words(&[]), &here),
            (words(&["runs/x", "no such name!"]), &here),
            (words(&["runs/x", "learner-0"]), &remote),
        ] {
            let error = run_and_worker(&given, remote).unwrap_err();
            assert!(error.is::<UsageError>(), "{given:?}: {error}");
        }
    }
}
