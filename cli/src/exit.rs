//! Exit codes, and how an error is shown.

use std::{
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
};

use retouch_dataset::DatasetError;
use retouch_models::weights::LoadError;
use retouch_worker::process::StopSignal;

/// Shown under `retouch --help`.
pub(crate) const CODES_HELP: &str = "\
Exit codes:
  0   done; a run that `stop` or `drain` ended is done too
  1   it failed; the last line says why. A run that failed goes on with `launch --retry`
  2   the command line, a run file or a file that it names is wrong: retrying will not help
  3   no coordinator answers: the run is over, starting, or out of reach
  4   the coordinator refuses: the token, an unknown worker, or a run that can't do that now
  75  ended by SIGTERM or SIGHUP, or by `retouch restart`: start it again and it goes on
  130 ended by SIGINT (Ctrl-C); the same command goes on";

/// Retrying will not help.
pub(crate) const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;
/// The coordinator does not take this process.
pub(crate) const REFUSED: u8 = 4;
/// The code by which a worker asks its parent for another life.
pub(crate) const START_AGAIN: u8 = 75;
/// A process that SIGINT ended.
pub(crate) const INTERRUPTED: u8 = 130;

/// Marks an error as one that trying again can't mend. clap uses the same code.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

impl From<LoadError> for UsageError {
    fn from(error: LoadError) -> Self {
        Self(error.to_string())
    }
}

impl From<DatasetError> for UsageError {
    fn from(error: DatasetError) -> Self {
        Self(error.to_string())
    }
}

/// No coordinator answers.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unreachable(pub(crate) String);

/// The coordinator answers, and refuses.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(pub(crate) String);

/// A worker was told to end and to be started again.
#[derive(Debug, thiserror::Error)]
#[error("told to end and to be started again")]
pub(crate) struct StartAgain;

/// A signal asked for the end, and it came in good order.
#[derive(Debug, thiserror::Error)]
#[error("stopped by {}: {left}", .signal.name())]
pub(crate) struct Stopped {
    pub(crate) signal: StopSignal,
    /// What is kept, and how to go on.
    pub(crate) left: String,
}

/// Prints the error with its causes, one a line, and gives its exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    match error.is::<Stopped>() {
        true => complain(error),
        false => complain(format_args!("error: {error}")),
    }
    for cause in error.chain().skip(1) {
        complain(format_args!("  because: {cause}"));
    }
    code(error).into()
}

/// Writes a line to standard error. If that is full or closed nobody can be told, and the exit code has to do.
pub(crate) fn complain(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn code(error: &anyhow::Error) -> u8 {
    if let Some(stopped) = error.downcast_ref::<Stopped>() {
        stopped.signal.exit_code()
    } else if error.is::<UsageError>() {
        USAGE
    } else if error.is::<Unreachable>() {
        UNREACHABLE
    } else if error.is::<Refused>() {
        REFUSED
    } else if error.is::<StartAgain>() {
        START_AGAIN
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn every_kind_has_its_code_under_any_context() {
        let text = || "x".to_owned();
        let with = |error: Result<(), anyhow::Error>| error.context("while trying").unwrap_err();
        assert_eq!(code(&with(Err(UsageError(text()).into()))), 2);
        assert_eq!(code(&with(Err(Refused(text()).into()))), 4);
        assert_eq!(code(&with(Err(StartAgain.into()))), 75);
        assert_eq!(code(&with(Err(anyhow!("x")))), 1);
        let away = Err(anyhow!("refused")).context(Unreachable(text()));
        assert_eq!(code(&with(away)), 3);
        for (signal, expected) in [
            (StopSignal::Interrupt, INTERRUPTED),
            (StopSignal::Terminate, START_AGAIN),
            (StopSignal::HangUp, START_AGAIN),
        ] {
            let left = text();
            let stopped = with(Err(Stopped { signal, left }.into()));
            assert_eq!(code(&stopped), expected);
        }
    }

    #[test]
    fn the_help_names_every_code() {
        for code in [0, 1, USAGE, UNREACHABLE, REFUSED, START_AGAIN, INTERRUPTED] {
            let start = format!("\n  {code} ");
            assert!(CODES_HELP.contains(&start), "{code}");
        }
    }
}
