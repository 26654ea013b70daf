//! Runs with small random models as tests start, watch and disturb them: by `launch` ([`run`]), or process by process
//! ([`cluster`]).

#![allow(dead_code, reason = "each test crate uses a part")]

pub(crate) mod cluster;
pub(crate) mod run;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use retouch_tiny::dataset::{Dataset, Targets};
use serde_json::Value;

const WAIT_MAX: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(50);

pub(crate) fn retouch() -> Command {
    Command::new(retouch_path())
}

pub(crate) fn retouch_path() -> PathBuf {
    env!("CARGO_BIN_EXE_retouch").into()
}

/// What a command prints, if it is JSON.
pub(crate) fn json(command: &mut Command) -> Option<Value> {
    let output = command.stderr(Stdio::null()).output();
    serde_json::from_slice(&output.expect("it starts").stdout).ok()
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

/// Small random editors, a judge and a dataset, made once for all tests.
pub(crate) fn assets() -> &'static Path {
    static ASSETS: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = ASSETS.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        make_assets(folder.path());
        folder
    });
    folder.path()
}

fn make_assets(folder: &Path) {
    retouch_tiny::editor::init(&folder.join("editor"), 1).expect("an editor");
    retouch_tiny::qwen_editor::init(&folder.join("qwen-editor"), 1).expect("a Qwen editor");
    retouch_tiny::judge::init(&folder.join("judge"), 2).expect("a judge");
    let dataset = Dataset {
        seed: 3,
        train: 32,
        test: 16,
        targets: Targets::Omitted,
    };
    dataset.write(&folder.join("dataset")).expect("a dataset");
}

/// Waits until `done` gives something. What takes too long fails the test, with the ends of the logs in `logs`.
pub(crate) fn wait_for<T>(what: &str, logs: &Path, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        if let Some(outcome) = done() {
            return outcome;
        }
        let late = Instant::now() > deadline;
        assert!(
            !late,
            "not within {WAIT_MAX:?}: {what}\n{}",
            log_tails(logs)
        );
        std::thread::sleep(POLL);
    }
}

/// As [`wait_for`], while `run` goes on.
pub(crate) fn wait_for_status(
    what: &str,
    logs: &Path,
    run: &mut Child,
    mut status: impl FnMut() -> Option<Value>,
) -> Value {
    wait_for(what, logs, || {
        let found = status();
        let ended = run.try_wait().expect("a child of ours");
        assert!(
            found.is_some() || ended.is_none(),
            "the run ended before {what}: {ended:?}\n{}",
            log_tails(logs)
        );
        found
    })
}

/// The ends of all logs in a folder.
pub(crate) fn log_tails(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let logs = paths.filter(|path| path.extension().is_some_and(|ending| ending == "log"));
    let tail = |log: PathBuf| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(15)..].join("\n");
        format!("--- {}\n{last}\n", log.display())
    };
    logs.map(tail).collect()
}

/// A file of the run folder, such as the coordinator's address or a token.
pub(crate) fn read(folder: &Path, name: &str) -> String {
    let text = std::fs::read_to_string(folder.join("run").join(name)).expect(name);
    text.trim().to_owned()
}

/// What `retouch status` says of the run in this folder, if it answers.
pub(crate) fn status(folder: &Path) -> Option<Value> {
    let run = folder.join("run");
    json(retouch().args(["status", "--json"]).arg(run))
}

/// What a status says about one worker.
pub(crate) fn worker<'a>(status: &'a Value, id: &str) -> Option<&'a Value> {
    let workers = status["workers"].as_array().expect("workers");
    workers.iter().find(|worker| worker["id"] == id)
}

/// Sends a signal by its name, such as `KILL`.
pub(crate) fn signal(name: &str, pid: i32) {
    let signal: Signal = format!("SIG{name}").parse().expect("a signal");
    kill(Pid::from_raw(pid), signal).unwrap_or_else(|error| panic!("kill -{name} {pid}: {error}"));
}

pub(crate) fn adapter(report: &Value) -> String {
    report["adapter"]
        .as_str()
        .expect("an adapter hash")
        .to_owned()
}
