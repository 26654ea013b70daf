//! Exit codes, and how an error is shown.

use std::process::ExitCode;

/// The command line or a configuration is wrong: starting again changes nothing. clap uses the same code.
pub(crate) const USAGE: u8 = 2;

/// Marks an error as one that trying again can't mend.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// Prints the error with its causes, one a line, and gives its exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  because: {cause}");
    }
    if error.chain().any(|cause| cause.is::<UsageError>()) {
        ExitCode::from(USAGE)
    } else {
        ExitCode::FAILURE
    }
}
