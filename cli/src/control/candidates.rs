//! What shells are offered for words that name a run and one of its workers.

use std::{
    ffi::{OsStr, OsString},
    time::Duration,
};

use clap::{CommandFactory, FromArgMatches};
use clap_complete::{ArgValueCompleter, CompletionCandidate};

use retouch_proto::status::WorkerStatus;
use tokio::time::timeout;

use super::{
    record::View,
    target::{self, Remote, offered_runs},
};
use crate::{Cli, runtime::block_on};

/// How long a shell waits for a coordinator.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// For the words of a command that are a run's folder, unless the run is remote, and the name of one of its workers.
pub(super) fn run_and_worker() -> ArgValueCompleter {
    ArgValueCompleter::new(folders_or_workers)
}

fn folders_or_workers(current: &OsStr) -> Vec<CompletionCandidate> {
    let line = std::env::args_os().skip_while(|word| word != "--").skip(1);
    let (mut words, remote) = named_run(line).unwrap_or_default();
    // The last is the one to be completed.
    words.pop();
    if words.is_empty() && remote.coordinator.is_none() {
        return offered_runs(current);
    }
    let mut workers = workers(&words, &remote);
    let current = current.to_string_lossy();
    workers.retain(|worker| worker.id.as_str().starts_with(&*current));
    let candidate = |worker: WorkerStatus| {
        let what = format!("{}, {}", worker.role, worker.state);
        CompletionCandidate::new(worker.id.to_string()).help(Some(what.into()))
    };
    workers.into_iter().map(candidate).collect()
}

/// The workers of a run; none if it can't be asked, since a shell has no use for an error.
fn workers(run: &[String], remote: &Remote) -> Vec<WorkerStatus> {
    let view = async {
        let (target, _) = target::run_and_worker(run, remote)?;
        timeout(WAIT_MAX, View::of(&target)).await?
    };
    block_on(view).map_or(Vec::new(), |view| view.status.workers)
}

/// The words of an unfinished command line that name a run and a worker, and where the run is if not here.
fn named_run(line: impl Iterator<Item = OsString>) -> Option<(Vec<String>, Remote)> {
    let matches = Cli::command()
        .ignore_errors(true)
        .try_get_matches_from(line)
        .ok()?;
    let (_, matches) = matches.subcommand()?;
    let words = matches.get_many::<String>("words").into_iter().flatten();
    Some((
        words.cloned().collect(),
        Remote::from_arg_matches(matches).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(line: &[&str]) -> (Vec<String>, Option<String>) {
        let (words, remote) = named_run(line.iter().map(Into::into)).unwrap();
        (words, remote.coordinator)
    }

    #[test]
    fn a_line_names_its_run_before_it_is_complete() {
        let words = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            named(&["retouch", "drain", "runs/x", ""]),
            (words(&["runs/x", ""]), None)
        );
        let remote = ["retouch", "restart", "--coordinator", "host:1", "le"];
        assert_eq!(named(&remote), (words(&["le"]), Some("host:1".into())));
        assert_eq!(
            named(&["retouch", "restart", "--coordinator"]),
            (words(&[]), None)
        );
    }
}
