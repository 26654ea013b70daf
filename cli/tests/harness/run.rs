//! Runs of `examples/smoke.toml` and `examples/smoke-qwen.toml` as `launch` makes them.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
};

use serde_json::Value;

use super::{assets, log_tails, retouch, root, status, wait_for, wait_for_status};

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

/// Where a launch's standard output goes, beside its run folder.
pub(crate) const OUT: &str = "launch.out";
/// Where its standard error goes.
pub(crate) const ERR: &str = "launch.err";

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

    /// A launch into a folder that `prepare` has seen first.
    pub(crate) fn prepared(prepare: impl FnOnce(&Path), sets: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        prepare(folder.path());
        let child = spawn(folder.path(), sets);
        Self { folder, child }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Waits for the end; a run that takes too long is killed and fails the test.
    pub(crate) fn finish(&mut self) -> ExitStatus {
        let logs = self.log_folder();
        wait_for("the run ends", &logs, || {
            self.child.try_wait().expect("a child of ours")
        })
    }

    pub(crate) fn finish_well(&mut self) -> Value {
        let status = self.finish();
        assert!(status.success(), "{status}\n{}", self.logs());
        let text = std::fs::read_to_string(self.path().join("run/report.json")).expect("a report");
        serde_json::from_str(&text).expect("report.json is JSON")
    }

    /// Waits until `status --json` says what `done` wants to hear.
    pub(crate) fn wait_for(&mut self, done: impl Fn(&Value) -> bool) -> Value {
        let (folder, logs) = (self.path().to_owned(), self.log_folder());
        wait_for_status(
            "the status that the test waits for",
            &logs,
            &mut self.child,
            || status(&folder).filter(&done),
        )
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
        let own = format!("--- launch\n{}{}", self.said(OUT), self.said(ERR));
        own + &log_tails(&self.log_folder())
    }

    /// What the launch has printed to [`OUT`] or [`ERR`].
    pub(crate) fn said(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap_or_default()
    }

    /// The last line of its standard error: the reason of its end.
    pub(crate) fn reason(&self) -> String {
        let said = self.said(ERR);
        said.lines().last().unwrap_or_default().to_owned()
    }

    /// Another launch in the same folder.
    pub(crate) fn again(&mut self, sets: &[&str]) {
        self.child = spawn(self.path(), sets);
    }

    fn log_folder(&self) -> PathBuf {
        self.path().join("run/logs")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn spawn(folder: &Path, sets: &[&str]) -> Child {
    spawn_example(SMOKE, folder, sets)
}

fn spawn_example(example: Example, folder: &Path, sets: &[&str]) -> Child {
    launch_command(&run_file_of(example, folder, sets), folder)
        .spawn()
        .expect("retouch starts")
}

/// `retouch launch` with these arguments, and its output in [`OUT`] and [`ERR`].
pub(crate) fn launch_command(arguments: &[String], folder: &Path) -> Command {
    let file = |name| File::create(folder.join(name)).expect("our own folder");
    let mut command = retouch();
    command
        .current_dir(root())
        .arg("launch")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(file(OUT))
        .stderr(file(ERR));
    command
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

/// The adapter hash of an undisturbed run, made once for all tests.
pub(crate) fn undisturbed() -> &'static Value {
    static REPORT: OnceLock<Value> = OnceLock::new();
    REPORT.get_or_init(|| Run::launch(&[]).finish_well())
}
