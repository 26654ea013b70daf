//! The load and its measurement.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use retouch_proto::worker::Role;
use tokio::time::sleep;

use crate::latencies::{Latencies, Summary};
use crate::process::Process;
use crate::session_grpc::{Session, Shared};
use crate::{config, dataset};

/// A rate is held if it is reached to this share, and tasks get to their workers in this time.
const SHARE_MIN: f64 = 0.95;
const P99_MS_MAX: f64 = 50.0;
/// Reward workers are at work for this share of the time, so that there is always a free one.
const REWARD_LOAD: f64 = 0.8;
/// How long each rate is looked at when the highest is looked for.
const PROBE: Duration = Duration::from_secs(10);
/// How long a rate takes to settle: the longest tasks of the one before it, at the default load.
const SETTLE: Duration = Duration::from_secs(12);
/// How long everybody may take to join.
const JOIN_MAX: Duration = Duration::from_secs(120);

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    sessions: usize,
    rate: f64,
    seconds: u64,
}

/// A while of load.
struct Measured {
    rate: f64,
    latency: Summary,
    cpu_share: f64,
}

impl Load {
    pub(crate) fn parse(arguments: &[String]) -> Option<Self> {
        let number = |at: usize, otherwise: u64| match arguments.get(at) {
            Some(text) => text.parse().ok(),
            None => Some(otherwise),
        };
        (arguments.len() <= 3).then_some(Self {
            sessions: number(0, 2_000)? as usize,
            rate: number(1, 400)? as f64,
            seconds: number(2, 30)?,
        })
    }

    /// Runs everything and prints what it measures.
    pub(crate) async fn run(self) -> Result<(), String> {
        let folder = std::env::temp_dir().join(format!("retouch-swarm-{}", std::process::id()));
        dataset::write(&folder.join("dataset"), 10_000)
            .map_err(|error| format!("{}: {error}", folder.display()))?;
        let ended = self.measure_all(&folder).await;
        // What can't be deleted is the system's to delete.
        let _ = std::fs::remove_dir_all(&folder);
        ended
    }

    async fn measure_all(self, folder: &std::path::Path) -> Result<(), String> {
        let process = Process::start(folder).await?;
        let shared = Arc::new(self.shared(&process)?);
        self.open_sessions(&shared).await?;
        println!("{} sessions are open", self.sessions);
        sleep(SETTLE).await;
        let measured = self
            .measure(&shared, &process, Duration::from_secs(self.seconds))
            .await;
        let [now_mib, max_mib] = process.memory_mib();
        println!(
            "asked for {:.0} dispatches/s: {measured}; coordinator: {now_mib:.0} MiB now, {max_mib:.0} MiB at most",
            self.rate
        );
        let iterations = shared.iterations.load(Ordering::Relaxed);
        println!(
            "{iterations} iterations of {} groups happened",
            config(folder).rollout.groups_per_iteration
        );
        let process = self.restart(&shared, process, folder).await?;
        self.find_highest(&shared, &process).await;
        let [now_mib, max_mib] = process.memory_mib();
        println!("coordinator at the end: {now_mib:.0} MiB now, {max_mib:.0} MiB at most");
        Ok(())
    }

    fn shared(&self, process: &Process) -> Result<Shared, String> {
        let config = config(std::path::Path::new(""));
        let shared = Shared {
            address: Mutex::new(process.address()?),
            rollout_us: AtomicU64::new(0),
            score_us: AtomicU64::new(0),
            heartbeat: Duration::from_millis(config.cluster.heartbeat_ms),
            latencies: Latencies::default(),
            joined: AtomicU64::new(0),
            new_leases: AtomicU64::new(0),
            sampled: Mutex::default(),
            iterations: AtomicU64::new(0),
        };
        self.set_rate(&shared, self.rate);
        Ok(shared)
    }

    /// Half of the dispatches are rollouts, half are scorings.
    fn set_rate(&self, shared: &Shared, rate: f64) {
        let workers = (self.sessions / 2) as f64;
        let rollout_us = 1e6 * workers / (rate / 2.0);
        shared
            .rollout_us
            .store(rollout_us as u64, Ordering::Relaxed);
        shared
            .score_us
            .store((REWARD_LOAD * rollout_us) as u64, Ordering::Relaxed);
    }

    /// One learner, and as many rollout as reward workers, a few at a time.
    async fn open_sessions(&self, shared: &Arc<Shared>) -> Result<(), String> {
        tokio::spawn(Session::new(shared.clone(), Role::Learner, 0).run());
        for number in 0..self.sessions / 2 {
            for role in [Role::Rollout, Role::Reward] {
                tokio::spawn(Session::new(shared.clone(), role, number).run());
            }
            if number % 20 == 0 {
                sleep(Duration::from_millis(20)).await;
            }
        }
        self.wait_for_all(shared).await.map(drop)
    }

    /// How long it took until everybody was there.
    async fn wait_for_all(&self, shared: &Shared) -> Result<Duration, String> {
        let begun = Instant::now();
        let all = 1 + 2 * (self.sessions as u64 / 2);
        while begun.elapsed() < JOIN_MAX {
            if shared.joined.load(Ordering::Relaxed) >= all {
                return Ok(begun.elapsed());
            }
            sleep(Duration::from_millis(5)).await;
        }
        let joined = shared.joined.load(Ordering::Relaxed);
        Err(format!(
            "only {joined} of {all} sessions joined within {JOIN_MAX:?}"
        ))
    }

    async fn measure(&self, shared: &Shared, process: &Process, time: Duration) -> Measured {
        let _ = shared.latencies.take();
        let (begun, cpu_s) = (Instant::now(), process.cpu_s());
        sleep(time).await;
        let elapsed_s = begun.elapsed().as_secs_f64();
        let latency = shared.latencies.take();
        Measured {
            rate: latency.count as f64 / elapsed_s,
            latency,
            cpu_share: (process.cpu_s() - cpu_s) / elapsed_s,
        }
    }

    /// `kill -9` in the middle of the load, and a start in the same folder.
    async fn restart(
        &self,
        shared: &Shared,
        process: Process,
        folder: &std::path::Path,
    ) -> Result<Process, String> {
        process.kill()?;
        shared.new_leases.store(0, Ordering::Relaxed);
        let begun = Instant::now();
        let process = Process::start(folder).await?;
        let listens = begun.elapsed();
        *shared.address.lock().expect("nobody panics") = process.address()?;
        while shared.new_leases.load(Ordering::Relaxed) == 0 && begun.elapsed() < JOIN_MAX {
            sleep(Duration::from_millis(1)).await;
        }
        let first = begun.elapsed();
        self.wait_for_all(shared).await?;
        println!(
            "killed and started again: it listens after {:.2} s, the first new assignment is there after {:.2} s, all \
             sessions are back after {:.2} s",
            listens.as_secs_f64(),
            first.as_secs_f64(),
            begun.elapsed().as_secs_f64()
        );
        Ok(process)
    }

    async fn find_highest(&self, shared: &Shared, process: &Process) {
        let mut rate = self.rate;
        let mut highest = None;
        loop {
            self.set_rate(shared, rate);
            sleep(SETTLE).await;
            let measured = self.measure(shared, process, PROBE).await;
            println!("asked for {rate:.0} dispatches/s: {measured}");
            if measured.rate < SHARE_MIN * rate || measured.latency.p99_ms > P99_MS_MAX {
                break;
            }
            highest = Some(measured.rate);
            rate *= 1.25;
        }
        match highest {
            Some(rate) => println!("the highest rate that was held: {rate:.0} dispatches/s"),
            None => println!("no rate was held"),
        }
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Summary {
            p50_ms,
            p99_ms,
            max_ms,
            ..
        } = self.latency;
        write!(
            f,
            "{:.0} dispatches/s, latency p50 {p50_ms:.1} ms, p99 {p99_ms:.1} ms, longest {max_ms:.0} ms, coordinator {:.2} \
             cores",
            self.rate, self.cpu_share
        )
    }
}
