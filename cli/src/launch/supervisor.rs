//! Starts the processes of a run on this machine, restarts those that die, and ends them all.
//!
//! Roles are crash-only: whatever a process was doing is done again by its next generation, so the supervisor
//! restarts it and asks nothing. What its exit code calls lasting is not tried again, and neither is a process that keeps
//! dying: then the launch ends, with the reason that the process gave.

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

use super::{last_words::LastWords, progress::Lines};
use crate::exit::{self, Refused, UsageError};

/// Deaths within this time count together: one that dies each time it has loaded its model does so minutes apart.
const DEATHS_WITHIN: Duration = Duration::from_secs(1800);
const RESTARTS_MAX: usize = 5;
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// One process to keep alive.
pub(super) struct ProcessSpec {
    /// Unique name, also of its log file: `rollout-worker-0`.
    pub(super) name: String,
    /// Arguments of our own executable.
    pub(super) arguments: Vec<OsString>,
    /// More of them, for its lives until it has begun: one that dies before has not made use of them.
    pub(super) first_arguments: Vec<OsString>,
    /// Whether some life of it has begun its work.
    pub(super) has_begun: Box<dyn Fn() -> bool + Send + Sync>,
    /// A variable added to the environment.
    pub(super) environment: Option<(&'static str, &'static str)>,
    /// How long it may take to end by itself after SIGTERM.
    pub(super) grace: Duration,
    /// Asked when it failed: the reason why another life would be of no use, if there is one.
    pub(super) given_up: Box<dyn Fn() -> Option<String> + Send + Sync>,
}

/// What is known of the processes that live now: name to process id.
pub(super) type Pids = Arc<Mutex<BTreeMap<String, u32>>>;

/// Keeps a set of processes alive.
pub(super) struct Supervisor {
    executable: PathBuf,
    log_dir: PathBuf,
    lines: Lines,
    pids: Pids,
    tasks: JoinSet<(String, anyhow::Result<()>)>,
    /// By name, for each process whose end was not waited for yet.
    stops: BTreeMap<String, CancellationToken>,
}

impl Supervisor {
    /// `log_dir` gets one file for each process, appended to over restarts; `lines` hears of deaths.
    pub(super) fn new(log_dir: &Path, lines: Lines) -> anyhow::Result<Self> {
        std::fs::create_dir_all(log_dir)
            .with_context(|| format!("can't create the log folder {}", log_dir.display()))?;
        Ok(Self {
            executable: std::env::current_exe().context("can't find our own executable")?,
            log_dir: log_dir.to_owned(),
            lines,
            pids: Pids::default(),
            tasks: JoinSet::new(),
            stops: BTreeMap::new(),
        })
    }

    pub(super) fn pids(&self) -> Pids {
        self.pids.clone()
    }

    pub(super) fn start(&mut self, spec: ProcessSpec) {
        let stop = CancellationToken::new();
        self.stops.insert(spec.name.clone(), stop.clone());
        let keeper = Keeper {
            executable: self.executable.clone(),
            log: self.log_dir.join(format!("{}.log", spec.name)),
            spec,
            lines: self.lines.clone(),
            pids: self.pids.clone(),
            stop,
            life: AtomicU64::new(0),
        };
        self.tasks
            .spawn(async move { (keeper.spec.name.clone(), keeper.keep_alive().await) });
    }

    /// Waits until a process ended for good: `Ok(name)` when it was done, an error when it can't be kept alive.
    pub(super) async fn next_end(&mut self) -> anyhow::Result<String> {
        match self.tasks.join_next().await {
            Some(Ok((name, result))) => {
                self.stops.remove(&name);
                result.map(|()| name)
            }
            Some(Err(panic)) => Err(panic.into()),
            None => bail!("no process is left to wait for"),
        }
    }

    /// Ends one process while the others go on: SIGTERM, then SIGKILL if it takes longer than its grace.
    pub(super) async fn end(&mut self, name: &str) {
        while let Some(stop) = self.stops.get(name) {
            stop.cancel();
            // Why another one ended meanwhile no longer matters.
            if self.next_end().await.is_err() && self.tasks.is_empty() {
                return;
            }
        }
    }

    /// Ends every process: SIGTERM, then SIGKILL for what is left after its grace.
    pub(super) async fn shut_down(mut self) {
        self.stops.values().for_each(CancellationToken::cancel);
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Keeps one process alive.
struct Keeper {
    executable: PathBuf,
    log: PathBuf,
    spec: ProcessSpec,
    lines: Lines,
    pids: Pids,
    stop: CancellationToken,
    /// Where in the log the present life of the process begins.
    life: AtomicU64,
}

/// What follows from how a process ended.
enum Next {
    /// Its work is over.
    Done,
    /// It was asked to end, by somebody else than us.
    Again,
    /// It died.
    Died,
}

impl Keeper {
    async fn keep_alive(&self) -> anyhow::Result<()> {
        let mut deaths: Vec<Instant> = Vec::new();
        loop {
            let Some(status) = self.run_once().await? else {
                return Ok(());
            };
            let backoff = match self.judge(status)? {
                Next::Done => return Ok(()),
                Next::Again => BACKOFF_FIRST,
                Next::Died => {
                    deaths.retain(|death| death.elapsed() < DEATHS_WITHIN);
                    deaths.push(Instant::now());
                    if deaths.len() > RESTARTS_MAX {
                        bail!(
                            "{} died {} times within half an hour ({status}): {}",
                            self.spec.name,
                            deaths.len(),
                            self.last_words(),
                        );
                    }
                    let name = &self.spec.name;
                    self.lines
                        .say(&format!("{name} died ({status}) and is started again"));
                    let longer = BACKOFF_FIRST.saturating_mul(1 << (deaths.len() - 1));
                    longer.min(BACKOFF_MAX)
                }
            };
            tokio::select! {
                () = sleep(backoff) => {}
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }

    /// What its exit code asks for.
    ///
    /// # Errors
    /// If another life would end the same way.
    fn judge(&self, status: ExitStatus) -> anyhow::Result<Next> {
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        match code {
            Some(0) => Ok(Next::Done),
            Some(exit::USAGE) => Err(UsageError(self.why_not()).into()),
            Some(exit::REFUSED) => Err(Refused(self.why_not()).into()),
            Some(exit::START_AGAIN | exit::INTERRUPTED) => Ok(Next::Again),
            _ => match (self.spec.given_up)() {
                Some(reason) => bail!(reason),
                None => Ok(Next::Died),
            },
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
                terminate(&mut child, self.spec.grace).await?;
                None
            }
        };
        self.pids().remove(&self.spec.name);
        Ok(status)
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let log = open_log(&self.log)?;
        let first: &[OsString] = match (self.spec.has_begun)() {
            false => &self.spec.first_arguments,
            true => &[],
        };
        self.life.store(log.metadata()?.len(), Ordering::Relaxed);
        Command::new(&self.executable)
            .args(&self.spec.arguments)
            .args(first)
            .envs(self.spec.environment)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in a terminal reaches a whole group: it is for us, who end all others in their order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("can't start {}", self.spec.name))
    }

    fn why_not(&self) -> String {
        format!("{} can't run: {}", self.spec.name, self.last_words())
    }

    /// What its last life had to say.
    fn last_words(&self) -> LastWords {
        LastWords::of(&self.log, self.life.load(Ordering::Relaxed))
    }

    fn pids(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, u32>> {
        self.pids
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn terminate(child: &mut Child, grace: Duration) -> anyhow::Result<()> {
    if let Some(pid) = child.id() {
        // A process that is already gone is what we want.
        let _ = kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM);
    }
    if timeout(grace, child.wait()).await.is_err() {
        child.kill().await?;
    }
    Ok(())
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.with_context(|| format!("can't write the log {}", path.display()))
}
