//! One run from its first launch to its end, disturbed as its plan says.

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use nix::sys::signal::Signal as Unix;
use serde_json::Value;

use super::{
    ends::is_expected,
    orders::{self, Answer},
    place::{Disk, Place},
    plan::{Fault, Kind, Order, Plan, Signal, Victim},
    processes::{Launch, processes, signal_all},
    settings::{ITERATIONS, run_file},
};

const POLL: Duration = Duration::from_millis(5);
/// How long what `launch` started may outlive it.
const ORPHANS_MAX: Duration = Duration::from_secs(10);
const RESUME_AGAIN: Duration = Duration::from_millis(500);
/// A run with more is given up.
const PROBLEMS_MAX: usize = 3;
const LOG_TAIL_LINES: usize = 15;

/// A run to be made.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    /// None for an undisturbed one.
    pub(crate) seed: Option<u64>,
    pub(crate) staleness: u64,
    pub(crate) plan: Plan,
    /// How long an undisturbed run takes here.
    pub(crate) usual: Duration,
    /// How long a run may go on after the last thing that was done to it.
    pub(crate) limit: Duration,
    /// Whether its folder stays if it fails.
    pub(crate) keep: bool,
    /// Whether the story is printed while it happens.
    pub(crate) aloud: bool,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) task: Task,
    /// What was really done: a run may be over before its plan is.
    pub(crate) faults: BTreeMap<Kind, usize>,
    pub(crate) launches: usize,
    pub(crate) wall: Duration,
    /// None if it did not get there.
    pub(crate) end: Option<End>,
    pub(crate) failure: Option<Failure>,
    /// What happened, a line each.
    pub(crate) story: Vec<String>,
}

/// The end of a run that has all iterations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// The hash of the final adapter.
    pub(crate) adapter: String,
    /// The hashes of the learners' states after each iteration.
    pub(crate) states: Vec<String>,
}

/// Why a run counts as failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) what: String,
    /// The ends of all logs.
    pub(crate) logs: String,
}

/// What stands on the agenda.
#[derive(Debug, Clone, Copy)]
enum Act {
    Do(Fault),
    Continue(Victim),
    FreeDisk,
    Resume,
    KillCoordinator,
}

impl Act {
    fn is_free_disk(self) -> bool {
        matches!(self, Self::FreeDisk)
    }
}

/// Makes the run.
pub(crate) fn make(place: &Place, task: Task) -> Outcome {
    let mut run = Run::new(place, task);
    let end = run.go();
    let end = end
        .map_err(|error| run.problems.push(format!("{error:#}")))
        .ok();
    let failure = (!run.problems.is_empty()).then(|| Failure {
        what: run.problems.join("; "),
        logs: run.logs(),
    });
    run.clean_up(failure.is_some());
    Outcome {
        faults: run.faults,
        launches: run.launches,
        wall: run.begun.elapsed(),
        task: run.task,
        story: run.story,
        end,
        failure,
    }
}

struct Run<'a> {
    place: &'a Place,
    task: Task,
    /// Of this run alone; the run folder is `run` in it.
    folder: PathBuf,
    disk: Option<Disk>,
    launch: Option<Launch>,
    /// How long the log was before this life of `launch`.
    log_start: u64,
    launches: usize,
    begun: Instant,
    agenda: Vec<(Instant, Act)>,
    /// Questions on their way, and the number of the launch in which each was asked.
    asked: Vec<(usize, JoinHandle<Answer>)>,
    /// Signals that this life of `launch` was sent.
    struck: Vec<Signal>,
    /// `stop` or `drain` was asked for and has not ended a launch yet.
    is_ending: bool,
    /// A pause was answered and nothing since has ended it.
    is_paused: bool,
    /// The most iterations that the run may have when this launch ends, after an order that was answered.
    committed_max: u64,
    last_act: Instant,
    faults: BTreeMap<Kind, usize>,
    story: Vec<String>,
    /// Promises that did not hold; the run goes on nevertheless.
    problems: Vec<String>,
}

impl<'a> Run<'a> {
    fn new(place: &'a Place, task: Task) -> Self {
        let name = match task.seed {
            Some(seed) => format!("seed-{seed}-staleness-{}", task.staleness),
            None => format!(
                "undisturbed-{}-staleness-{}",
                task.plan.ranks, task.staleness
            ),
        };
        let now = Instant::now();
        Self {
            folder: place.folder.join(name),
            place,
            task,
            disk: None,
            launch: None,
            log_start: 0,
            launches: 0,
            begun: now,
            agenda: Vec::new(),
            asked: Vec::new(),
            struck: Vec::new(),
            is_ending: false,
            is_paused: false,
            committed_max: ITERATIONS,
            last_act: now,
            faults: BTreeMap::new(),
            story: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn go(&mut self) -> anyhow::Result<End> {
        self.make_folder()?;
        self.launch()?;
        let steps = self.task.plan.steps.iter();
        let moment = |at_permille: u64| self.task.usual.mul_f64(at_permille as f64 / 1e3);
        self.agenda = steps
            .map(|step| (self.begun + moment(step.at_permille), Act::Do(step.fault)))
            .collect();
        loop {
            if let Some(end) = self.look_at_launch()? {
                return Ok(end);
            }
            self.hear_answers()?;
            while let Some(act) = self.due() {
                self.last_act = Instant::now();
                self.act(act)?;
            }
            let waited = self.last_act.elapsed();
            ensure!(
                waited < self.task.limit,
                "it did not end within {:?} after all faults\n{}",
                self.task.limit,
                orders::status(&self.place.retouch, &self.run_folder())
            );
            std::thread::sleep(POLL);
        }
    }

    fn run_folder(&self) -> PathBuf {
        self.folder.join("run")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("launch.log")
    }

    fn log_length(&self) -> u64 {
        self.log().metadata().map_or(0, |log| log.len())
    }

    fn clock_folder(&self) -> PathBuf {
        self.folder.join("clock")
    }

    fn make_folder(&mut self) -> anyhow::Result<()> {
        let _ = std::fs::remove_dir_all(&self.folder);
        std::fs::create_dir_all(self.clock_folder())?;
        let mut steps = self.task.plan.steps.iter();
        if self.place.disks && steps.any(|step| step.fault.kind() == Kind::Disk) {
            self.disk = Some(Disk::mount(&self.run_folder())?);
        }
        let text = run_file(&self.place.assets, &self.run_folder(), &self.task);
        Ok(std::fs::write(self.folder.join("run.toml"), text)?)
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.place.retouch);
        command.arg("launch").arg(self.folder.join("run.toml"));
        command.arg("--no-evaluation").env("NO_COLOR", "1");
        if let Some(library) = &self.place.clock {
            command.env("LD_PRELOAD", library);
            command.env("CHAOS_CLOCK", self.clock_folder());
        }
        self.log_start = self.log_length();
        self.launch = Some(Launch::start(command, &self.log())?);
        self.launches += 1;
        self.struck.clear();
        // Whoever launches a run again wants it to go on.
        self.committed_max = ITERATIONS;
        let number = self.launches;
        self.tell(format_args!("launch {number}"));
        Ok(())
    }

    /// The end of the run, if `launch` has ended with it; if it has ended before, it is launched again.
    fn look_at_launch(&mut self) -> anyhow::Result<Option<End>> {
        let status = self.launch.as_mut().map(Launch::try_wait).transpose()?;
        let Some(status) = status.flatten() else {
            return Ok(None);
        };
        self.launch = None;
        self.last_act = Instant::now();
        self.tell(format_args!("launch ended: {status}"));
        self.await_orphans()?;
        // Nobody would look for results, or launch, on a full disk.
        if let Some(index) = self.agenda.iter().position(|(_, act)| act.is_free_disk()) {
            let (_, act) = self.agenda.swap_remove(index);
            self.act(act)?;
        }
        let (committed, end) = self.result(status)?;
        if end.is_none() {
            self.judge_end(status, committed)?;
            self.launch()?;
        } else if committed > self.committed_max {
            self.problem(format!(
                "an order was answered and forgotten: the run should have at most {} iterations and has {committed}",
                self.committed_max
            ));
        }
        Ok(end)
    }

    /// Whether `launch` may end so before the run is over.
    fn judge_end(&mut self, status: ExitStatus, committed: u64) -> anyhow::Result<()> {
        let is_asked = status.success() && self.is_ending;
        // Before its first words it has not learned to end well.
        let is_starting = self.log_length() == self.log_start;
        if !is_asked && !is_expected(status, &self.struck, is_starting) {
            self.problem(format!(
                "launch ended after {committed} of {ITERATIONS} iterations with {status}, having been sent {:?}",
                self.struck
            ));
        }
        self.is_ending &= !status.success();
        ensure!(
            self.problems.len() < PROBLEMS_MAX,
            "it is not launched again"
        );
        Ok(())
    }

    /// How many iterations the run has, and its end if it has all.
    fn result(&self, status: ExitStatus) -> anyhow::Result<(u64, Option<End>)> {
        let versions = orders::versions(&self.place.retouch, &self.run_folder());
        let committed = versions.len() as u64;
        if !status.success() || committed < ITERATIONS {
            return Ok((committed, None));
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let states = versions.iter().map(|version| text(&version["state"]));
        let adapter = versions.last().map(|version| text(&version["ema_adapter"]));
        let adapter = adapter.filter(|hash| !hash.is_empty());
        let adapter = adapter.context("launch ended well, and there is no final adapter")?;
        let states = states.collect();
        Ok((committed, Some(End { adapter, states })))
    }

    fn await_orphans(&self) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let left = processes(&self.folder);
            if left.is_empty() {
                return Ok(());
            }
            ensure!(
                begin.elapsed() < ORPHANS_MAX,
                "launch has ended and left processes behind: {left:?}"
            );
            std::thread::sleep(POLL);
        }
    }

    /// The next act whose time has come.
    fn due(&mut self) -> Option<Act> {
        let acts = self.agenda.iter().enumerate();
        let (index, (at, _)) = acts.min_by_key(|(_, (at, _))| *at)?;
        (*at <= Instant::now()).then(|| self.agenda.swap_remove(index).1)
    }

    fn later(&mut self, ms: u64, act: Act) {
        let at = Instant::now() + Duration::from_millis(ms);
        self.agenda.push((at, act));
    }

    fn act(&mut self, act: Act) -> anyhow::Result<()> {
        match act {
            Act::Do(fault) => {
                let is_done = self.strike(fault)?;
                if is_done {
                    *self.faults.entry(fault.kind()).or_default() += 1;
                }
                let note = if is_done {
                    ""
                } else {
                    " (not done: not there)"
                };
                self.tell(format_args!("{fault}{note}"));
            }
            Act::Continue(victim) => {
                self.signal(victim, Unix::SIGCONT);
                self.tell(format_args!("{victim} continues"));
            }
            Act::FreeDisk => {
                self.disk.as_ref().map_or(Ok(()), Disk::free)?;
                self.tell(format_args!("the disk has room again"));
            }
            Act::Resume => self.ask(orders::Question::Resume),
            Act::KillCoordinator => {
                self.signal(Victim::Coordinator, Unix::SIGKILL);
                self.tell(format_args!("coordinator killed after its answer"));
            }
        }
        Ok(())
    }

    /// Whether it could be done.
    fn strike(&mut self, fault: Fault) -> anyhow::Result<bool> {
        Ok(match fault {
            Fault::Signal(signal, victim) => self.end(victim, signal),
            Fault::Stop { victim, ms } => {
                self.later(ms, Act::Continue(victim));
                self.signal(victim, Unix::SIGSTOP)
            }
            Fault::Order { order, kill_ms } => {
                self.is_ending |= matches!(order, Order::Stop | Order::Drain);
                self.ask(orders::Question::Order { order, kill_ms });
                true
            }
            Fault::FullDisk { ms } => match &self.disk {
                Some(disk) => {
                    disk.fill()?;
                    self.later(ms, Act::FreeDisk);
                    true
                }
                None => false,
            },
            Fault::Clock {
                victim,
                offset_s,
                restart,
            } => {
                let file = self.clock_folder().join(victim.to_string());
                std::fs::write(file, offset_s.to_string())?;
                self.place.clock.is_some() && (!restart || self.end(victim, Signal::Kill))
            }
        })
    }

    fn end(&mut self, victim: Victim, signal: Signal) -> bool {
        if matches!(victim, Victim::Launch | Victim::Everyone) {
            self.struck.push(signal);
        }
        self.signal(victim, signal.into())
    }

    fn signal(&self, victim: Victim, signal: Unix) -> bool {
        let launch = self.launch.as_ref();
        launch.is_some_and(|launch| launch.signal(&self.folder, victim, signal))
    }

    /// Asks in the background: the coordinator may be stopped or dead.
    fn ask(&mut self, question: orders::Question) {
        let (retouch, run) = (self.place.retouch.clone(), self.run_folder());
        let ask = move || orders::ask(&retouch, &run, question);
        self.asked.push((self.launches, std::thread::spawn(ask)));
    }

    fn hear_answers(&mut self) -> anyhow::Result<()> {
        while let Some(index) = self.asked.iter().position(|(_, asked)| asked.is_finished()) {
            let (launch, asked) = self.asked.swap_remove(index);
            let answer = asked.join().map_err(|_| anyhow!("a question panicked"))?;
            if !answer.is_asked_again() {
                self.tell(format_args!("{answer}"));
            }
            self.hear(&answer, launch == self.launches);
        }
        Ok(())
    }

    fn hear(&mut self, answer: &Answer, is_of_this_launch: bool) {
        match answer.question {
            orders::Question::Resume => {
                if answer.is_obeyed() {
                    let was_running = answer.state_before.as_deref() == Some("running");
                    if std::mem::take(&mut self.is_paused) && was_running {
                        let what = "`pause` was answered and forgotten: the run went on by itself";
                        self.problem(what.to_owned());
                    }
                }
                if answer.is_asked_again() {
                    self.later(RESUME_AGAIN.as_millis() as u64, Act::Resume);
                }
            }
            orders::Question::Order { order, kill_ms } => {
                if let Order::Pause { ms } = order {
                    self.later(ms, Act::Resume);
                    self.is_paused = answer.is_obeyed() && answer.state == Some("paused".into());
                }
                if let Some(ms) = kill_ms.filter(|_| answer.is_obeyed()) {
                    self.later(ms, Act::KillCoordinator);
                }
                if is_of_this_launch {
                    self.expect_end(answer, order);
                }
            }
        }
    }

    /// An answered `stop` or `drain` must hold: few more iterations may be committed in this life of the run.
    fn expect_end(&mut self, answer: &Answer, order: Order) {
        // One may have been committed between the look at the run and the order; `drain` finishes the open ones besides.
        let more = match (order, answer.state.as_deref()) {
            (Order::Stop, Some("stopping")) => 1,
            (Order::Drain, Some("draining")) => 2 + self.task.staleness,
            _ => return,
        };
        self.is_paused = false;
        if let Some(before) = answer.committed_before {
            self.committed_max = self.committed_max.min(before + more);
        }
    }

    fn problem(&mut self, what: String) {
        self.tell(format_args!("PROBLEM: {what}"));
        self.problems.push(what);
    }

    fn tell(&mut self, what: std::fmt::Arguments<'_>) {
        let line = format!("{:7.2} s  {what}", self.begun.elapsed().as_secs_f64());
        if self.task.aloud {
            println!("{line}");
        }
        self.story.push(line);
    }

    fn logs(&self) -> String {
        let own = self.log();
        let logs = std::fs::read_dir(self.run_folder().join("logs"));
        let mut files: Vec<PathBuf> = logs
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect();
        files.sort();
        let mut text = String::new();
        for file in [own].iter().chain(&files) {
            let _ = writeln!(text, "--- {}\n{}", file.display(), tail(file));
        }
        text
    }

    fn clean_up(&mut self, failed: bool) {
        self.launch = None;
        // Those that should have ended with it, and did not, end here.
        signal_all(&self.folder, Unix::SIGKILL);
        for (_, asked) in std::mem::take(&mut self.asked) {
            let _ = asked.join();
        }
        if !(failed && self.task.keep) {
            self.disk = None;
            let _ = std::fs::remove_dir_all(&self.folder);
        } else if let Some(disk) = self.disk.take() {
            // What is on the small disk would go with it.
            let (run, copy) = (self.run_folder(), self.folder.join("copy"));
            let _ = Command::new("cp").arg("-a").args([&run, &copy]).status();
            drop(disk);
            let _ = std::fs::remove_dir(&run).and_then(|()| std::fs::rename(copy, run));
        }
    }
}

fn tail(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}
