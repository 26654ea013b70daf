//! What a role's process arranges with the operating system.

use std::io;

use nix::{
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::Signal,
    },
    unistd::{Pid, getppid},
};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A process that can't be set up.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The kernel refused.
    #[error("cannot tie this process to its parent: {0}")]
    Parent(#[from] nix::Error),
    /// The parent was gone before this process was tied to it.
    #[error("parent process {expected} is gone, the parent is {found} now")]
    Orphan {
        /// Who started this process.
        expected: u32,
        /// Who has it now.
        found: i32,
    },
    /// Signals can't be received.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
    /// The compute threads can't be started.
    #[error("cannot start {threads} compute threads: {source}")]
    Threads {
        /// How many were asked for.
        threads: u32,
        /// Why.
        source: rayon::ThreadPoolBuildError,
    },
}

/// Has the kernel kill this process when its parent ends, however that ends.
///
/// # Errors
///
/// If `parent`, the process id of who started this one, has ended already.
pub fn die_with_parent(parent: u32) -> Result<(), ProcessError> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let found = getppid();
    if found == Pid::from_raw(parent as i32) {
        return Ok(());
    }
    Err(ProcessError::Orphan {
        expected: parent,
        found: found.as_raw(),
    })
}

/// Lets this process open as many files as the system allows: each connection is one, and shells often
/// start with room for a thousand.
pub fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// A token that is cancelled by the first SIGTERM or Ctrl-C. The second ends the
/// process at once.
///
/// # Errors
///
/// If signals can't be received.
pub fn stop_signal() -> Result<CancellationToken, ProcessError> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).map_err(ProcessError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ProcessError::Signals)?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if stopping.is_cancelled() {
                std::process::exit(130);
            }
            tracing::info!("stopping: finishing what is under way, a second signal ends at once");
            stopping.cancel();
        }
    });
    Ok(stop)
}

/// Sizes the pool on which tensors are computed; 0 takes all cores. Only the first
/// call of a process counts.
///
/// # Errors
///
/// If the threads can't be started.
pub fn set_compute_threads(threads: u32) -> Result<(), ProcessError> {
    static ONCE: std::sync::Once = std::sync::Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads as usize);
        result = pool
            .build_global()
            .map_err(|source| ProcessError::Threads { threads, source });
    });
    result
}
