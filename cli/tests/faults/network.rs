//! Coordinator, workers and learners on machines of their own, whose network fails.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use retouch_coordinator::store::Reader;
use serde_json::Value;

use crate::{
    forwarder::Line,
    harness::{
        adapter, json, log_tails, root,
        run::{run_file, undisturbed},
        wait_for, wait_for_status,
    },
    namespaces::{self, HUB, Host, Network},
};

const RETOUCH: &str = env!("CARGO_BIN_EXE_retouch");
const PORT: u16 = 7000;
const SLOW: Duration = Duration::from_millis(120);
/// A worker is lost after three silent heartbeats of a second.
const LONG_CUT: Duration = Duration::from_millis(4_500);
const SHORT_CUT: Duration = Duration::from_millis(1_500);
const WORKERS: [(&str, &str, &str); 5] = [
    ("rollout-worker", "rollout-worker", "rollout-worker-0"),
    ("rollout-worker", "rollout-worker", "rollout-worker-1"),
    ("reward-worker", "reward-worker", "reward-worker-0"),
    ("learner", "learner", "learner-0"),
    ("learner", "learner", "learner-1"),
];

/// A run whose processes are on hosts of their own.
struct Cluster {
    // Processes first: they must be gone before their hosts are.
    coordinator: Process,
    workers: Vec<Process>,
    coordinator_host: Host,
    hosts: Vec<Host>,
    line: Line,
    network: Network,
    folder: tempfile::TempDir,
}

/// A process that ends with the test.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start(host: &Host, name: &str, folder: &Path, arguments: &[String], token: &str) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log);
        let file = file.expect("a log file");
        let child = host
            .command(RETOUCH)
            .args(arguments)
            .env("RETOUCH_TOKEN", token)
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a log file"))
            .stderr(file)
            .spawn()
            .expect("`ip` starts");
        Self { child, log }
    }
}

impl Cluster {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut network = Network::new();
        let coordinator_host = network.add_host();
        let coordinator = start_coordinator(&coordinator_host, folder.path());
        // Workers reach the coordinator over a line that can be made slow.
        let line = Line::default();
        let (opened, to) = (
            line.clone(),
            SocketAddr::from((coordinator_host.address, PORT)),
        );
        network.on_hub(move || opened.open(SocketAddr::from((HUB, PORT)), to));
        let address = folder.path().join("run/coordinator.addr");
        wait_for("the coordinator listens", folder.path(), || {
            address.exists().then_some(())
        });
        let hosts: Vec<Host> = WORKERS.iter().map(|_| network.add_host()).collect();
        let workers = hosts.iter().zip(WORKERS);
        let workers = workers.map(|(host, worker)| start_worker(host, worker, folder.path()));
        Self {
            coordinator,
            workers: workers.collect(),
            coordinator_host,
            hosts,
            line,
            network,
            folder,
        }
    }

    fn wait_for(&mut self, what: &str, done: impl Fn(&Value) -> bool) {
        let (host, folder) = (&self.coordinator_host, self.folder.path());
        let status = || {
            let mut command = host.command(RETOUCH);
            json(command.args(["status", "--json"]).arg(folder.join("run"))).filter(&done)
        };
        wait_for_status(what, folder, &mut self.coordinator.child, status);
    }

    /// Cuts the links of these hosts for a while.
    fn cut(&self, hosts: &[&Host], duration: Duration) {
        hosts.iter().for_each(|host| self.network.cut(host));
        std::thread::sleep(duration);
        hosts.iter().for_each(|host| self.network.mend(host));
    }

    fn restart_coordinator(&mut self) {
        self.coordinator.child.kill().expect("a child of ours");
        self.coordinator.child.wait().expect("a child of ours");
        self.coordinator = start_coordinator(&self.coordinator_host, self.folder.path());
    }

    /// Every process ends by itself, and well.
    fn finish(&mut self) {
        let folder = self.folder.path().to_owned();
        wait_for("all processes end", &folder, || {
            self.all_have_ended().then_some(())
        });
    }

    /// Whether all have; whoever has must have ended well.
    fn all_have_ended(&mut self) -> bool {
        let processes = self.workers.iter_mut().chain([&mut self.coordinator]);
        let ends = processes.map(|process| {
            let ended = process.child.try_wait().expect("a child of ours");
            (process.log.display().to_string(), ended)
        });
        let ends: Vec<_> = ends.collect();
        for (name, ended) in &ends {
            let well = ended.is_none_or(|status| status.success());
            let logs = log_tails(self.folder.path());
            assert!(well, "{name}: {ended:?}\n{logs}");
        }
        ends.iter().all(|(_, ended)| ended.is_some())
    }
}

fn start_coordinator(host: &Host, folder: &Path) -> Process {
    let listen = format!("{}:{PORT}", host.address);
    let mut arguments = vec!["coordinator".to_owned(), "--listen".to_owned(), listen];
    arguments.extend(run_file(folder, &[]));
    Process::start(host, "coordinator", folder, &arguments, "")
}

fn start_worker(host: &Host, worker: (&str, &str, &str), folder: &Path) -> Process {
    let (command, principal, name) = worker;
    let run = folder.join("run");
    let token = run.join("credentials").join(principal).join("token");
    let token = std::fs::read_to_string(token).expect("the coordinator has made tokens");
    let listen = format!("{}:0", host.address);
    let coordinator = format!("{HUB}:{PORT}");
    let (data, run) = (
        folder.join(name).display().to_string(),
        run.display().to_string(),
    );
    let arguments = [
        command,
        "--coordinator",
        &coordinator,
        "--name",
        name,
        "--data-dir",
        &data,
        "--device",
        "cpu",
        "--listen",
        &listen,
        "--run-dir",
        &run,
    ];
    let arguments = arguments.map(str::to_owned);
    Process::start(host, name, folder, &arguments, &token)
}

#[test]
fn a_run_over_a_failing_network_ends_with_the_same_adapter() {
    if let Some(obstacle) = namespaces::obstacle() {
        let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!in_ci, "the network test cannot run: {obstacle}");
        eprintln!("THE NETWORK TEST DID NOT RUN: {obstacle}");
        return;
    }
    let begin = Instant::now();
    let mut cluster = Cluster::start();
    cluster.wait_for("all join", |status| {
        status["workers"]
            .as_array()
            .is_some_and(|workers| workers.len() == WORKERS.len())
    });
    let [rollout, _, reward, learner, other_learner] = &cluster.hosts.clone()[..] else {
        unreachable!("five workers")
    };
    cluster.cut(&[learner], LONG_CUT);
    cluster.line.set_delay(SLOW);
    cluster.cut(&[&cluster.coordinator_host], LONG_CUT);
    cluster.wait_for("the first iteration", |status| {
        status["committed"].as_u64() >= Some(1)
    });
    cluster.cut(&[rollout, reward], SHORT_CUT);
    cluster.restart_coordinator();
    cluster.cut(&[rollout, other_learner], LONG_CUT);
    cluster.line.set_delay(Duration::ZERO);
    cluster.finish();
    let adapters = Reader::open(&cluster.folder.path().join("run"))
        .and_then(|record| record.adapters())
        .expect("a record");
    let (iteration, hash) = adapters.last().expect("an adapter");
    let connections = cluster.line.connections();
    println!(
        "{:.1?}, {connections} connections to the coordinator",
        begin.elapsed()
    );
    assert_eq!(iteration.0, 3);
    assert_eq!(hash.to_string(), adapter(undisturbed()));
    assert!(connections >= WORKERS.len(), "{connections}");
}
