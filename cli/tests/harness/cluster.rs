//! A run's processes started by hand, as on a cluster, with small random models.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{File, OpenOptions},
    path::Path,
    process::{Child, Stdio},
};

use retouch_coordinator::store::Reader;
use retouch_proto::status::IterationMetrics;
use serde_json::Value;

use super::{json, log_tails, make_assets, read, retouch, wait_for};

/// The models, the dataset, the run folder, and every process that was started.
pub(crate) struct Cluster {
    folder: tempfile::TempDir,
    address: String,
    children: Vec<(String, Child)>,
    /// The most memory that each process was seen with.
    pub(crate) peaks_kib: RefCell<BTreeMap<String, u64>>,
}

impl Cluster {
    /// Makes models and dataset and starts the coordinator. `settings` is more of the run file.
    pub(crate) fn start(settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        make_assets(folder.path());
        let mut cluster = Self {
            folder,
            address: String::new(),
            children: Vec::new(),
            peaks_kib: RefCell::default(),
        };
        cluster.set(settings);
        cluster.start_coordinator();
        cluster
    }

    /// Writes the run file.
    pub(crate) fn set(&self, settings: &str) {
        let file = self.path().join("run.toml");
        std::fs::write(file, run_file(self.path(), settings)).expect("a run file");
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn spawn_coordinator(&mut self) {
        self.spawn("coordinator", &["coordinator", "run.toml"]);
    }

    /// Starts it and waits until it listens.
    pub(crate) fn start_coordinator(&mut self) {
        let file = self.path().join("run/coordinator.addr");
        let _ = std::fs::remove_file(&file);
        self.spawn_coordinator();
        self.wait_for("the coordinator listens", || file.exists().then_some(()));
        self.address = read(self.path(), "coordinator.addr");
    }

    /// Starts a worker on the CPU, or its next life after [`kill`](Self::kill).
    pub(crate) fn start_worker(&mut self, role: &str, index: usize) {
        let name = format!("{role}-{index}");
        let (address, data) = (self.address.clone(), format!("data-{name}"));
        let arguments = ["--coordinator", &address, "--name", &name];
        let credentials = format!("run/credentials/{role}");
        let rest = ["--data-dir", &data, "--device", "cpu"];
        let access = ["--credentials", &credentials];
        self.spawn(&name, &[&[role][..], &arguments, &access, &rest].concat());
    }

    pub(crate) fn start_workers(&mut self, roles: &[(&str, usize)]) {
        for (role, count) in roles {
            (0..*count).for_each(|index| self.start_worker(role, index));
        }
    }

    /// Starts one process with several roles.
    pub(crate) fn start_node(&mut self, roles: &str) {
        let (address, scratch) = (self.address.clone(), "data-node");
        let arguments = ["node", "--roles", roles, "--coordinator", &address];
        let place = ["--name", "node", "--scratch", scratch, "--credentials"];
        let arguments = [&arguments[..], &place, &["run/credentials"]].concat();
        self.spawn("node", &arguments);
    }

    fn spawn(&mut self, name: &str, arguments: &[&str]) {
        let log = self.path().join(format!("{name}.log"));
        let log: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log");
        let child = retouch()
            .current_dir(self.path())
            .args(arguments)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let child = child.expect("retouch starts");
        self.children.push((name.to_owned(), child));
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, name: &str) {
        let index = self.children.iter().position(|(of, _)| of == name);
        let (_, mut child) = self.children.swap_remove(index.expect("it was started"));
        child.kill().expect("a child of ours");
        child.wait().expect("a child of ours");
    }

    /// SIGKILL to all processes.
    pub(crate) fn kill_everything(&mut self) {
        while let Some((_, mut child)) = self.children.pop() {
            child.kill().expect("a child of ours");
            child.wait().expect("a child of ours");
        }
    }

    /// The EMA adapter that the run ended with, and the policies of all its iterations.
    pub(crate) fn result(&self) -> (String, Vec<String>) {
        let record = Reader::open(&self.path().join("run")).expect("a record");
        let adapter = record.checkpoint().expect("a checkpoint").ema_adapter;
        let iterations = record.iterations().expect("iterations");
        let version = |iteration: IterationMetrics| iteration.version.expect("it was trained");
        let versions = iterations.into_iter().map(version).collect();
        (adapter.expect("an adapter").to_string(), versions)
    }

    /// `retouch COMMAND RUN`, as a person would steer the run.
    pub(crate) fn command(&self, arguments: &[&str]) -> Option<Value> {
        json(retouch().args(arguments).arg(self.path().join("run")))
    }

    /// The last committed iteration.
    pub(crate) fn committed(&self) -> u64 {
        let status = self.command(&["status", "--json"]);
        status
            .and_then(|status| status["committed"].as_u64())
            .unwrap_or(0)
    }

    pub(crate) fn wait_for<T>(&self, what: &str, done: impl FnMut() -> Option<T>) -> T {
        wait_for(what, self.path(), done)
    }

    /// Waits until every process has ended by itself; whether the coordinator ended well.
    pub(crate) fn finish(&mut self) -> bool {
        let mut children = std::mem::take(&mut self.children);
        self.wait_for("all processes end", || {
            for (name, child) in &children {
                let mut peaks = self.peaks_kib.borrow_mut();
                let peak = peaks.entry(name.clone()).or_default();
                *peak = peak_rss_kib(child.id()).unwrap_or(0).max(*peak);
            }
            let ended = |(_, child): &mut (String, Child)| {
                child.try_wait().expect("a child of ours").is_some()
            };
            children.iter_mut().all(ended).then_some(())
        });
        let coordinator = children.iter_mut().find(|(name, _)| name == "coordinator");
        let (_, child) = coordinator.expect("it was started");
        child.wait().expect("a child of ours").success()
    }

    pub(crate) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    /// The ends of all logs.
    pub(crate) fn logs(&self) -> String {
        log_tails(self.path())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (_, child) in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The most memory that a living process ever had.
fn peak_rss_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn run_file(folder: &Path, settings: &str) -> String {
    let path = |name: &str| folder.join(name).display().to_string();
    format!(
        r#"
preset = "tiny"
run_dir = {run:?}
{settings}
[model]
path = {editor:?}
[dataset]
path = {dataset:?}
[[reward.terms]]
path = {judge:?}
template = {template:?}
[filter]
rule = "none"
ban = false
"#,
        run = path("run"),
        editor = path("editor"),
        dataset = path("dataset"),
        judge = path("judge"),
        template = path("judge/template.txt"),
    )
}
