//! What shells are offered for words that name a run and one of its workers.

use std::ffi::{OsStr, OsString};

use clap::{CommandFactory, FromArgMatches};
use clap_complete::{ArgValueCompleter, CompletionCandidate};

use super::{
    target::{Remote, offered_runs},
    workers::worker_names,
};
use crate::Cli;

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
    let begun = |name: &str| {
        current
            .to_str()
            .is_some_and(|current| name.starts_with(current))
    };
    let names = worker_names(&words, &remote).into_iter();
    names
        .filter(|(name, _)| begun(name))
        .map(|(name, what)| CompletionCandidate::new(name).help(Some(what.into())))
        .collect()
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
