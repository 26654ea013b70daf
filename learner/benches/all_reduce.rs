//! The sum of gradients over ranks on loopback, beside torch's gloo:
//!
//!     PYTHON=python3 cargo bench --package retouch-learner --bench all_reduce
//!
//! Both sides take turns, sum by sum, so that whatever else the machine does hits both. Every
//! round begins with a barrier and is timed by rank 0. Prints the fastest and the median round.
//! Without `PYTHON`, only ours.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use retouch_credentials::Handshake;
use retouch_learner::collective::{
    Aborter, Deadlines, Listener, Membership, Sealing, TcpCollective,
};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MIB: [usize; 4] = [1, 4, 16, 64];
const WORLDS: [usize; 2] = [2, 4];
/// Rounds that are not counted, and that are.
const WARM: usize = 2;
const ROUNDS: usize = 15;
const PATIENCE: Duration = Duration::from_secs(60);

/// Our ranks: this thread is rank 0, the others sum as many elements as they are told.
struct Ours {
    first: TcpCollective,
    told: Vec<mpsc::Sender<usize>>,
    threads: Vec<JoinHandle<()>>,
}

impl Ours {
    fn start(world: usize, sealing: Sealing) -> Self {
        let mut listeners: Vec<Listener> = (0..world)
            .map(|_| Listener::bind(([127, 0, 0, 1], 0).into(), Handshake::open()).expect("a port"))
            .collect();
        let peers: Vec<SocketAddr> = listeners.iter().map(Listener::address).collect();
        let (mut told, mut threads) = (Vec::new(), Vec::new());
        for (rank, listener) in listeners.drain(1..).enumerate() {
            let (sender, rounds) = mpsc::channel();
            let peers = peers.clone();
            told.push(sender);
            threads.push(std::thread::spawn(move || {
                let mut collective = join(&listener, rank + 1, peers, sealing);
                for elements in rounds {
                    sum(&mut collective, elements);
                }
            }));
        }
        Self {
            first: join(&listeners[0], 0, peers, sealing),
            told,
            threads,
        }
    }

    fn round(&mut self, elements: usize) -> f64 {
        let tell = |rank: &mpsc::Sender<usize>| rank.send(elements).expect("the rank lives");
        self.told.iter().for_each(tell);
        sum(&mut self.first, elements)
    }

    fn end(self) {
        drop(self.told);
        let threads = self.threads.into_iter();
        threads.for_each(|thread| thread.join().expect("no panic"));
    }
}

fn join(
    listener: &Listener,
    rank: usize,
    peers: Vec<SocketAddr>,
    sealing: Sealing,
) -> TcpCollective {
    let membership = Membership {
        epoch: 1,
        rank,
        shards: peers.len(),
        peers,
        sealing,
    };
    let deadlines = Deadlines {
        join: PATIENCE,
        arrival: PATIENCE,
        stall: PATIENCE,
    };
    TcpCollective::join(listener, membership, deadlines, &Aborter::default())
        .expect("all ranks come")
}

/// Milliseconds of one sum.
fn sum(collective: &mut TcpCollective, elements: usize) -> f64 {
    let shards = vec![vec![0.5; elements]];
    collective.barrier().expect("all ranks stay");
    let begin = Instant::now();
    let sum = collective.all_reduce(shards).expect("all ranks stay");
    let time = begin.elapsed().as_secs_f64() * 1e3;
    assert_eq!(sum[elements - 1], 0.5 * collective.world() as f32);
    time
}

/// Gloo's ranks: one process each, told line by line how many elements to sum.
struct Gloo {
    ranks: Vec<(Child, BufReader<ChildStdout>)>,
    _store: tempfile::TempDir,
}

impl Gloo {
    fn start(python: &str, world: usize) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/bench/gloo.py");
        let store = tempfile::tempdir().expect("a temporary folder");
        let start = |rank: usize| {
            let mut child = Command::new(python)
                .arg(&script)
                .args([rank.to_string(), world.to_string()])
                .arg(store.path().join("store"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("$PYTHON starts");
            let answers = BufReader::new(child.stdout.take().expect("piped"));
            (child, answers)
        };
        Self {
            ranks: (0..world).map(start).collect(),
            _store: store,
        }
    }

    fn round(&mut self, elements: usize) -> f64 {
        for (child, _) in &mut self.ranks {
            let asked = child.stdin.as_mut().expect("piped");
            writeln!(asked, "{elements}").expect("the rank lives");
        }
        let answer = |(_, answers): &mut (Child, BufReader<ChildStdout>)| -> f64 {
            let mut line = String::new();
            answers.read_line(&mut line).expect("the rank answers");
            line.trim().parse().expect("a number")
        };
        let times: Vec<f64> = self.ranks.iter_mut().map(answer).collect();
        times[0]
    }
}

impl Drop for Gloo {
    fn drop(&mut self) {
        for (child, _) in &mut self.ranks {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn describe(times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[0], times[times.len() / 2])
}

fn compare(mib: usize, ours: &mut Ours, gloo: &mut Option<Gloo>) {
    let elements = mib << 18;
    let (mut own, mut other) = (Vec::new(), Vec::new());
    for round in 0..WARM + ROUNDS {
        let both = (
            ours.round(elements),
            gloo.as_mut().map(|gloo| gloo.round(elements)),
        );
        if round >= WARM {
            own.push(both.0);
            other.extend(both.1);
        }
    }
    let (least, median) = describe(&mut own);
    print!("  {mib:3} MiB  tcp min {least:7.2} median {median:7.2} ms");
    if other.is_empty() {
        return println!();
    }
    let (gloo_least, gloo_median) = describe(&mut other);
    let (by_least, by_median) = (gloo_least / least, gloo_median / median);
    println!(
        "   gloo min {gloo_least:7.2} median {gloo_median:7.2} ms   tcp is {by_least:.2} times as fast by min, {by_median:.2} by median"
    );
}

fn main() {
    let python = std::env::var("PYTHON").ok();
    let load = std::fs::read_to_string("/proc/loadavg").expect("Linux");
    println!("all-reduce of f32 on loopback; load {}", load.trim());
    for world in WORLDS {
        let mut gloo = python.as_ref().map(|python| Gloo::start(python, world));
        for sealing in [Sealing::Headers, Sealing::Everything] {
            println!("{world} ranks, sealed: {sealing:?} (gloo seals nothing)");
            let mut ours = Ours::start(world, sealing);
            for mib in MIB {
                compare(mib, &mut ours, &mut gloo);
            }
            ours.end();
        }
    }
}
