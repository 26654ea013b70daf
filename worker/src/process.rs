//! What a role's process arranges with the operating system.

use std::{
    io,
    sync::{Arc, OnceLock},
};

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

/// A signal that asks a process to end in good order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: `kill`, Slurm, Kubernetes, systemd.
    Terminate,
    /// SIGHUP: the terminal is gone.
    HangUp,
}

impl StopSignal {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::HangUp => "SIGHUP",
        }
    }

    /// The exit code of a process that it ended: a person's Ctrl-C is final, what a cluster ends is to be started again.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate | Self::HangUp => 75,
        }
    }
}

/// Whether this process was asked to end, and by which signal; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    token: CancellationToken,
    signal: Arc<OnceLock<StopSignal>>,
}

impl Stop {
    /// What the first signal cancels.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// The signal that came, if one has.
    pub fn signal(&self) -> Option<StopSignal> {
        self.signal.get().copied()
    }

    /// Waits for the first signal.
    pub async fn signalled(&self) -> StopSignal {
        self.token.cancelled().await;
        self.signal().unwrap_or(StopSignal::Terminate)
    }

    /// Whether it is the first.
    fn take(&self, signal: StopSignal) -> bool {
        let first = self.signal.set(signal).is_ok();
        self.token.cancel();
        first
    }
}

/// Who ends a process that takes too long to end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcer {
    /// Whoever sends a second signal.
    SecondSignal,
    /// Its parent. A second signal is ignored: systemd, Slurm and others send theirs to every process, and the parent
    /// passes its own on.
    Parent,
}

/// Listens for SIGTERM, SIGINT and SIGHUP. The first cancels the token.
///
/// # Errors
///
/// If signals can't be received.
pub fn stop_signal(enforcer: Enforcer) -> Result<Stop, ProcessError> {
    let stop = Stop::default();
    let listen = |kind| signal(kind).map_err(ProcessError::Signals);
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut hang_up = match is_ignored(Signal::SIGHUP) {
        // Under `nohup` a terminal that closes is no reason to end.
        true => None,
        false => Some(listen(SignalKind::hangup())?),
    };
    let stopping = stop.clone();
    tokio::spawn(async move {
        loop {
            let hung_up = async {
                match &mut hang_up {
                    Some(hang_up) => hang_up.recv().await,
                    None => std::future::pending().await,
                }
            };
            let signal = tokio::select! {
                _ = terminate.recv() => StopSignal::Terminate,
                _ = interrupt.recv() => StopSignal::Interrupt,
                _ = hung_up => StopSignal::HangUp,
            };
            let is_first = stopping.take(signal);
            let name = signal.name();
            match enforcer {
                Enforcer::Parent if is_first => {
                    tracing::info!("{name}: finishing what is under way");
                }
                Enforcer::Parent => {}
                Enforcer::SecondSignal if is_first => {
                    tracing::info!(
                        "{name}: finishing what is under way; a second signal ends at once"
                    );
                }
                Enforcer::SecondSignal => std::process::exit(signal.exit_code().into()),
            }
        }
    });
    Ok(stop)
}

/// Whether whoever started this process has it ignore the signal.
fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal as i32 - 1)) != 0)
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

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;

    use super::*;

    #[tokio::test]
    async fn the_first_signal_is_remembered_and_a_parent_may_repeat_it() {
        let stop = stop_signal(Enforcer::Parent).unwrap();
        assert_eq!(stop.signal(), None);
        raise(Signal::SIGTERM).unwrap();
        assert_eq!(stop.signalled().await, StopSignal::Terminate);
        assert!(stop.token().is_cancelled());
        assert!(!stop.take(StopSignal::Interrupt), "it would be the second");
        assert_eq!(stop.signal().map(StopSignal::exit_code), Some(75));

        let mut heard = signal(SignalKind::terminate()).unwrap();
        raise(Signal::SIGTERM).unwrap();
        heard.recv().await;
        // The listener has heard it too once all tasks had their turn; it would have ended this process.
        tokio::task::yield_now().await;
        assert_eq!(stop.signal(), Some(StopSignal::Terminate));
    }

    #[test]
    fn an_ignored_signal_is_known_as_such() {
        assert!(!is_ignored(Signal::SIGTERM));
        // As Rust's runtime has it.
        assert!(is_ignored(Signal::SIGPIPE));
    }
}
