//! Whole runs of `examples/smoke.toml` and `examples/smoke-qwen.toml` with real processes: the report, determinism, and
//! what kills change: nothing.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use retouch_tiny::dataset::{Dataset, Targets};
use serde_json::Value;

const RUN_MAX: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(50);

/// One launch of the smoke run into a folder of its own.
struct Run {
    folder: tempfile::TempDir,
    child: Child,
}

/// A run file in `examples/` and the folder in [`assets`] of its editor.
#[derive(Clone, Copy)]
struct Example {
    file: &'static str,
    editor: &'static str,
}

const SMOKE: Example = Example {
    file: "examples/smoke.toml",
    editor: "editor",
};

const SMOKE_QWEN: Example = Example {
    file: "examples/smoke-qwen.toml",
    editor: "qwen-editor",
};

impl Run {
    fn launch(sets: &[&str]) -> Self {
        Self::launch_example(SMOKE, sets)
    }

    fn launch_example(example: Example, sets: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let child = spawn(example, folder.path(), sets);
        Self { folder, child }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Waits for the end; a run that takes too long is killed and fails the test.
    fn finish(&mut self) -> ExitStatus {
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

    fn finish_well(&mut self) -> Value {
        let status = self.finish();
        assert!(status.success(), "{status}\n{}", self.logs());
        let text = std::fs::read_to_string(self.path().join("run/report.json")).expect("a report");
        serde_json::from_str(&text).expect("report.json is JSON")
    }

    /// Waits until `status --json` says what `done` wants to hear.
    fn wait_for(&mut self, done: impl Fn(&Value) -> bool) -> Value {
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
    fn process(&self, name: &str) -> i32 {
        let folder = self.path().to_string_lossy().into_owned();
        let ours = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words.contains(&name.as_bytes()) && String::from_utf8_lossy(&line).contains(&folder)
        };
        let entries = std::fs::read_dir("/proc").expect("/proc");
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.into_iter()
            .find(ours)
            .unwrap_or_else(|| panic!("no process {name}\n{}", self.logs()))
    }

    fn logs(&self) -> String {
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

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

/// Small random editors, a judge and a dataset, made once for all tests.
fn assets() -> &'static Path {
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

fn spawn(example: Example, folder: &Path, sets: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_retouch"));
    command
        .current_dir(root())
        .args(["launch", example.file, "--set"]);
    command.arg(format!("run_dir={}", folder.join("run").display()));
    for (key, name) in [
        ("model.path", example.editor),
        ("dataset.path", "dataset"),
        ("reward.terms", "judge"),
    ] {
        let path = assets().join(name);
        let value = match key {
            "reward.terms" => format!(
                "[{{ path = {path:?}, template = {:?} }}]",
                path.join("template.txt")
            ),
            _ => path.display().to_string(),
        };
        command.args(["--set", &format!("{key}={value}")]);
    }
    for set in sets {
        command.args(["--set", set]);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("retouch starts")
}

fn status(folder: &Path) -> Option<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(["status", "--json"])
        .arg(folder.join("run"))
        .stderr(Stdio::null())
        .output()
        .expect("retouch starts");
    serde_json::from_slice(&output.stdout).ok()
}

fn kill_9(pid: i32) {
    let status = Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .expect("kill exists");
    assert!(status.success(), "kill -9 {pid}: {status}");
}

fn adapter(report: &Value) -> String {
    report["adapter"]
        .as_str()
        .expect("an adapter hash")
        .to_owned()
}

/// The adapter hash of an undisturbed run, made once for all tests.
fn undisturbed() -> &'static Value {
    static REPORT: OnceLock<Value> = OnceLock::new();
    REPORT.get_or_init(|| Run::launch(&[]).finish_well())
}

#[test]
fn the_report_has_every_number() {
    let report = undisturbed();
    for measure in ["oracle", "judge"] {
        for part in ["before", "after", "gain"] {
            let estimate = &report["heldout"][measure][part];
            assert!(estimate["mean"].is_f64(), "{measure} {part}: {estimate}");
            let [low, high] = [0, 1].map(|i| estimate["ci95"][i].as_f64().expect("a bound"));
            assert!(low <= high, "{measure} {part}: {estimate}");
        }
    }
    assert_eq!(report["state"], "finished");
    assert_eq!(adapter(report).len(), 64);
    assert!(report["wall_s"].as_f64().expect("seconds") > 0.0);
    assert!(report["peak_rss_mib"].as_f64().expect("memory") > 0.0);
    assert!(report["stage_s"].as_object().expect("stages").len() >= 4);
}

#[test]
fn one_learner_gives_the_adapter_of_two() {
    let alone = Run::launch(&["learner.ranks=1"]).finish_well();
    assert_eq!(adapter(&alone), adapter(undisturbed()));
}

#[test]
fn status_shows_every_worker_while_the_run_goes_on() {
    let mut run = Run::launch(&[]);
    let status = run.wait_for(|status| status["committed"].as_u64() >= Some(1));
    let roles = |role: &str| {
        let workers = status["workers"].as_array().expect("workers");
        workers
            .iter()
            .filter(|worker| worker["role"] == role)
            .count()
    };
    assert_eq!(
        [roles("rollout"), roles("reward"), roles("learner")],
        [2, 1, 2],
        "{status:#}"
    );
    assert_eq!(adapter(&run.finish_well()), adapter(undisturbed()));
}

#[test]
fn killing_any_worker_changes_nothing() {
    for name in [
        "rollout-worker-0",
        "reward-worker-0",
        "learner-0",
        "learner-1",
    ] {
        let mut run = Run::launch(&[]);
        run.wait_for(|status| status["committed"].as_u64() >= Some(1));
        kill_9(run.process(name));
        assert_eq!(
            adapter(&run.finish_well()),
            adapter(undisturbed()),
            "{name} was killed"
        );
    }
}

#[test]
fn an_interrupted_run_goes_on_when_launched_again() {
    let mut run = Run::launch(&[]);
    run.wait_for(|status| status["committed"].as_u64() >= Some(1));
    run.child.kill().expect("our own child");
    run.child.wait().expect("our own child");
    run.child = spawn(SMOKE, run.path(), &[]);
    assert_eq!(adapter(&run.finish_well()), adapter(undisturbed()));
}

#[test]
fn a_run_on_another_base_model_differs_in_the_run_file_alone() {
    let report = Run::launch_example(SMOKE_QWEN, &[]).finish_well();
    assert_eq!(report["state"], "finished");
    let sampling = report["heldout"]["sampling"]
        .as_str()
        .expect("how edits were sampled");
    assert!(sampling.contains("true CFG 2"), "{sampling}");
    let alone = Run::launch_example(SMOKE_QWEN, &["learner.ranks=1"]).finish_well();
    assert_eq!(adapter(&alone), adapter(&report));
}

fn worker<'a>(status: &'a Value, id: &str) -> Option<&'a Value> {
    let workers = status["workers"].as_array().expect("workers");
    workers.iter().find(|worker| worker["id"] == id)
}

#[test]
fn a_bare_node_joins_with_address_and_token_alone() {
    let mut run = Run::launch(&["cluster.rollout_workers=1"]);
    run.wait_for(|status| worker(status, "rollout-worker-0").is_some());
    let folder = run.path().to_owned();
    let read = |name: &str| {
        let text = std::fs::read_to_string(folder.join("run").join(name)).expect(name);
        text.trim().to_owned()
    };
    let mut node = Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(["join", "rollout-worker", "--name", "bare"])
        .args(["--coordinator", &read("coordinator.addr")])
        .args(["--token", &read("coordinator.token")])
        .arg("--scratch")
        .arg(folder.join("node"))
        .current_dir(&folder)
        .stdout(Stdio::null())
        .spawn()
        .expect("retouch starts");
    let joined = run.wait_for(|status| {
        worker(status, "bare").is_some_and(|worker| worker["done"].as_u64() > Some(0))
    });
    assert_eq!(
        worker(&joined, "bare").expect("it is there")["role"],
        "rollout"
    );
    assert_eq!(adapter(&run.finish_well()), adapter(undisturbed()));
    let status = node.wait().expect("our own child");
    assert!(status.success(), "it ends with the run: {status}");
}
