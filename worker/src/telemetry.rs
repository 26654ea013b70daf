//! Log lines to the terminal and to a file.

use std::{
    ffi::OsStr,
    fs::OpenOptions,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::Mutex,
};

use thiserror::Error;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// The environment variable that says what is logged, as in `info,retouch_worker=debug`.
pub const LOG_VARIABLE: &str = "RETOUCH_LOG";

/// The environment variable by which people want no colours anywhere (no-color.org).
const NO_COLOR: &str = "NO_COLOR";

/// Where log lines go.
#[derive(Clone, Debug, Default)]
pub struct TelemetryOptions {
    /// Terminal output only from this level on: `off` where something else owns
    /// the terminal.
    pub terminal: Option<tracing::level_filters::LevelFilter>,
    /// A file to append to; its folder is made.
    pub file: Option<PathBuf>,
}

/// Logging that could not be set up.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The log file can't be written.
    #[error("log file {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The filter can't be read.
    #[error("{LOG_VARIABLE}: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
}

/// Sets up logging for this process. A second call changes nothing.
///
/// # Errors
///
/// If the file can't be opened or the filter makes no sense.
pub fn init(options: &TelemetryOptions) -> Result<(), TelemetryError> {
    let filter = std::env::var(LOG_VARIABLE).unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::builder().parse(filter)?;
    let level = options
        .terminal
        .unwrap_or(tracing::level_filters::LevelFilter::TRACE);
    // A terminal or a disk that takes no line is no reason to end, and saying so would panic.
    let terminal = tracing_subscriber::fmt::layer()
        .with_ansi(has_colours(
            io::stderr().is_terminal(),
            std::env::var_os(NO_COLOR).as_deref(),
        ))
        .with_writer(io::stderr)
        .log_internal_errors(false)
        .with_filter(level);
    let file = options.file.as_deref().map(open).transpose()?.map(|file| {
        tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(Mutex::new(file))
            .log_internal_errors(false)
    });
    // Tests of one process call this many times.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(terminal)
        .with(file)
        .try_init();
    Ok(())
}

/// Colours are for terminals, and for whoever has not set [`NO_COLOR`] to something.
fn has_colours(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

fn open(path: &Path) -> Result<std::fs::File, TelemetryError> {
    let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    folder
        .and_then(|()| OpenOptions::new().create(true).append(true).open(path))
        .map_err(|source| TelemetryError::File {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_whose_user_wants_them() {
        assert!(has_colours(true, None) && has_colours(true, Some(OsStr::new(""))));
        assert!(!has_colours(true, Some(OsStr::new("1"))));
        assert!(!has_colours(false, None));
    }
}
