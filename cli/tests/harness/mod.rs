//! Runs of `examples/smoke.toml` and `examples/smoke-qwen.toml` as tests start, watch and disturb them.

#![allow(dead_code, reason = "each test crate uses a part")]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use retouch_tiny::dataset::{Dataset, Targets};
use serde_json::Value;

const RUN_MAX: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(50);

/// A run file in `examples/` and the folder in [`assets`] of its editor.
#[derive(Clone, Copy)]
pub(crate) struct Example {
    file: &'static str,
    editor: &'static str,
}

pub(crate) const SMOKE: Example = Example {
    file: "examples/smoke.toml",
    editor: "editor",
};

pub(crate) const SMOKE_QWEN: Example = Example {
    file: "examples/smoke-qwen.toml",
    editor: "qwen-editor",
};

/// One launch of an example into a folder of its own.
pub(crate) struct Run {
    folder: tempfile::TempDir,
    pub(crate) child: Child,
}

impl Run {
    pub(crate) fn launch(sets: &[&str]) -> Self {
        Self::launch_example(SMOKE, sets)
    }

    pub(crate) fn launch_example(example: Example, sets: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let child = spawn_example(example, folder.path(), sets);
        Self { folder, child }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Waits for the end; a run that takes too long is killed and fails the test.
    pub(crate) fn finish(&mut self) -> ExitStatus {
        let deadline = Instant::now() + RUN_MAX;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the run takes longer than {RUN_MAX:?}\n{}",
                self.logs()
            );
            std::thread::sleep(POLL);
        }
    }

    pub(crate) fn finish_well(&mut self) -> Value {
        let status = self.finish();
        assert!(status.success(), "{status}\n{}", self.logs());
        let text = std::fs::read_to_string(self.path().join("run/report.json")).expect("a report");
        serde_json::from_str(&text).expect("report.json is JSON")
    }

    /// Waits until `status --json` says what `done` wants to hear.
    pub(crate) fn wait_for(&mut self, done: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + RUN_MAX;
        loop {
            if let Some(status) = status(self.path()).filter(&done) {
                return status;
            }
            let ended = self.child.try_wait().expect("a child of ours");
            assert!(
                ended.is_none(),
                "the run ended early: {ended:?}\n{}",
                self.logs()
            );
            assert!(
                Instant::now() < deadline,
                "the wait takes longer than {RUN_MAX:?}\n{}",
                self.logs()
            );
            std::thread::sleep(POLL);
        }
    }

    /// The process id of one of the run's processes, by the name that the supervisor gave it.
    pub(crate) fn process(&self, name: &str) -> i32 {
        self.find_process(name)
            .unwrap_or_else(|| panic!("no process {name}\n{}", self.logs()))
    }

    /// As [`Self::process`]; none while the supervisor is about to start it.
    pub(crate) fn find_process(&self, name: &str) -> Option<i32> {
        let folder = self.path().to_string_lossy().into_owned();
        let ours = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words.contains(&name.as_bytes()) && String::from_utf8_lossy(&line).contains(&folder)
        };
        let entries = std::fs::read_dir("/proc").expect("/proc");
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.into_iter().find(ours)
    }

    pub(crate) fn logs(&self) -> String {
        let logs = self.path().join("run/logs");
        let files =
            std::fs::read_dir(&logs).map(|entries| entries.flatten().map(|e| e.path()).collect());
        let files: Vec<PathBuf> = files.unwrap_or_default();
        let tail = |file: &PathBuf| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!(
                "--- {}\n{}\n",
                file.display(),
                lines[lines.len().saturating_sub(15)..].join("\n")
            )
        };
        files.iter().map(tail).collect()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
        retouch_tiny::editor::init(&folder.path().join("editor"), 1).expect("an editor");
        retouch_tiny::qwen_editor::init(&folder.path().join("qwen-editor"), 1)
            .expect("a Qwen editor");
        retouch_tiny::judge::init(&folder.path().join("judge"), 2).expect("a judge");
        let dataset = Dataset {
            seed: 3,
            train: 32,
            test: 16,
            targets: Targets::Omitted,
        };
        dataset
            .write(&folder.path().join("dataset"))
            .expect("a dataset");
        folder
    });
    folder.path()
}

pub(crate) fn spawn(folder: &Path, sets: &[&str]) -> Child {
    spawn_example(SMOKE, folder, sets)
}

fn spawn_example(example: Example, folder: &Path, sets: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_retouch"))
        .current_dir(root())
        .arg("launch")
        .args(run_file_of(example, folder, sets))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("retouch starts")
}

/// The smoke run in this folder, with small random models, as arguments of a command.
pub(crate) fn run_file(folder: &Path, sets: &[&str]) -> Vec<String> {
    run_file_of(SMOKE, folder, sets)
}

fn run_file_of(example: Example, folder: &Path, sets: &[&str]) -> Vec<String> {
    let path = |name: &str| assets().join(name);
    let terms = format!(
        "[{{ path = {:?}, template = {:?} }}]",
        path("judge"),
        path("judge").join("template.txt")
    );
    let own = [
        format!("run_dir={}", folder.join("run").display()),
        format!("model.path={}", path(example.editor).display()),
        format!("dataset.path={}", path("dataset").display()),
        format!("reward.terms={terms}"),
    ];
    let given = sets.iter().map(|set| (*set).to_owned());
    let sets = own.into_iter().chain(given);
    let sets = sets.flat_map(|set| ["--set".to_owned(), set]);
    [example.file.to_owned()].into_iter().chain(sets).collect()
}

pub(crate) fn status(folder: &Path) -> Option<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(["status", "--json"])
        .arg(folder.join("run"))
        .stderr(Stdio::null())
        .output()
        .expect("retouch starts");
    serde_json::from_slice(&output.stdout).ok()
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

/// The adapter hash of an undisturbed run, made once for all tests.
pub(crate) fn undisturbed() -> &'static Value {
    static REPORT: OnceLock<Value> = OnceLock::new();
    REPORT.get_or_init(|| Run::launch(&[]).finish_well())
}
