//! Starts the processes of a run on this machine, restarts those that die, and ends them all.
//!
//! Roles are crash-only: whatever a process was doing is done again by its next generation, so the supervisor
//! restarts it and asks nothing. It gives up on a process that keeps dying at once, and says what its log ends with.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::exit;

/// A process that lived this long was healthy: its earlier deaths no longer count.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
const RESTARTS_MAX: u32 = 8;
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long a process may take to end by itself after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
const LOG_TAIL_LINES: usize = 12;

/// One process to keep alive.
#[derive(Debug, Clone)]
pub(crate) struct ProcessSpec {
    /// Unique name, also of its log file: `rollout-worker-0`.
    pub(crate) name: String,
    /// Arguments of our own executable.
    pub(crate) arguments: Vec<OsString>,
    /// A variable added to the environment.
    pub(crate) environment: Option<(&'static str, &'static str)>,
    /// Whether a clean exit (code 0) means that its work is over.
    pub(crate) ends_by_itself: bool,
}

/// What is known of the processes that live now: name to process id.
pub(crate) type Pids = Arc<Mutex<BTreeMap<String, u32>>>;

/// Keeps a set of processes alive.
pub(crate) struct Supervisor {
    executable: PathBuf,
    log_dir: PathBuf,
    pids: Pids,
    tasks: JoinSet<(String, anyhow::Result<()>)>,
    stop: CancellationToken,
}

impl Supervisor {
    /// `log_dir` gets one file for each process, appended to over restarts.
    pub(crate) fn new(log_dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(log_dir)
            .with_context(|| format!("can't create the log folder {}", log_dir.display()))?;
        Ok(Self {
            executable: std::env::current_exe().context("can't find our own executable")?,
            log_dir: log_dir.to_owned(),
            pids: Pids::default(),
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
        })
    }

    pub(crate) fn pids(&self) -> Pids {
        self.pids.clone()
    }

    pub(crate) fn start(&mut self, spec: ProcessSpec) {
        let keeper = Keeper {
            executable: self.executable.clone(),
            log: self.log_dir.join(format!("{}.log", spec.name)),
            spec,
            pids: self.pids.clone(),
            stop: self.stop.clone(),
            life: AtomicU64::new(0),
        };
        self.tasks
            .spawn(async move { (keeper.spec.name.clone(), keeper.keep_alive().await) });
    }

    /// Waits until a process ended for good: `Ok(name)` when it was done, an error when it can't be kept alive.
    pub(crate) async fn next_end(&mut self) -> anyhow::Result<String> {
        match self.tasks.join_next().await {
            Some(Ok((name, result))) => result.map(|()| name),
            Some(Err(panic)) => Err(panic.into()),
            None => bail!("no process is left to wait for"),
        }
    }

    /// Ends every process: SIGTERM, then SIGKILL for what is left after the grace period.
    pub(crate) async fn shut_down(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Keeps one process alive.
struct Keeper {
    executable: PathBuf,
    log: PathBuf,
    spec: ProcessSpec,
    pids: Pids,
    stop: CancellationToken,
    /// Where in the log the present life of the process begins.
    life: AtomicU64,
}

impl Keeper {
    async fn keep_alive(&self) -> anyhow::Result<()> {
        let mut deaths = 0;
        loop {
            let started = Instant::now();
            let Some(status) = self.run_once().await? else {
                return Ok(());
            };
            if status.success() && self.spec.ends_by_itself {
                return Ok(());
            }
            if status.code() == Some(i32::from(exit::USAGE)) {
                bail!("{} can't run: {}", self.spec.name, self.last_words());
            }
            if status.code() == Some(i32::from(exit::START_AGAIN)) {
                tracing::info!(
                    process = self.spec.name,
                    "a process wants to be started again"
                );
                deaths = 0;
                continue;
            }
            deaths = if started.elapsed() >= HEALTHY_AFTER {
                1
            } else {
                deaths + 1
            };
            tracing::warn!(process = self.spec.name, %status, deaths, "a process died and is started again");
            if deaths > RESTARTS_MAX {
                bail!(
                    "{} died {deaths} times in a row ({status}): {}",
                    self.spec.name,
                    self.last_words(),
                );
            }
            let backoff = BACKOFF_FIRST
                .saturating_mul(1 << (deaths - 1))
                .min(BACKOFF_MAX);
            tokio::select! {
                () = sleep(backoff) => {}
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Runs the process to its end; `None` when it was ended because all are to stop.
    async fn run_once(&self) -> anyhow::Result<Option<ExitStatus>> {
        let mut child = self.spawn()?;
        let pid = child.id();
        if let Some(pid) = pid {
            self.pids().insert(self.spec.name.clone(), pid);
        }
        let status = tokio::select! {
            status = child.wait() => Some(status?),
            () = self.stop.cancelled() => {
                terminate(&mut child).await?;
                None
            }
        };
        self.pids().remove(&self.spec.name);
        Ok(status)
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let log = open_log(&self.log)?;
        self.life.store(log.metadata()?.len(), Ordering::Relaxed);
        Command::new(&self.executable)
            .args(&self.spec.arguments)
            .envs(self.spec.environment)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("can't start {}", self.spec.name))
    }

    /// The end of what its last life wrote.
    fn last_words(&self) -> String {
        format!(
            "the end of {}:\n{}",
            self.log.display(),
            log_tail(&self.log, self.life.load(Ordering::Relaxed))
        )
    }

    fn pids(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, u32>> {
        self.pids
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn terminate(child: &mut Child) -> anyhow::Result<()> {
    if let Some(pid) = child.id() {
        // A process that is already gone is what we want.
        let _ = kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM);
    }
    if timeout(GRACE, child.wait()).await.is_err() {
        child.kill().await?;
    }
    Ok(())
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.with_context(|| format!("can't write the log {}", path.display()))
}

fn log_tail(path: &Path, from: u64) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let life = bytes.get(from as usize..).unwrap_or_default();
    let text = String::from_utf8_lossy(life);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}
