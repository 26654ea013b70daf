//! Every process of a run is killed and stopped at many moments; the adapter stays the same.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::harness::{
    adapter,
    random::Random,
    run::{Run, spawn, undisturbed},
    signal,
};

/// Everything that a run consists of; `launch` starts all others and restarts those that die.
const VICTIMS: [&str; 7] = [
    "coordinator",
    "rollout-worker-0",
    "rollout-worker-1",
    "reward-worker-0",
    "learner-0",
    "learner-1",
    "launch",
];
const SEEDS: [u64; 6] = [1, 2, 3, 4, 5, 6];
const FAULTS: usize = 10;
/// A process that dies more often in a row is not restarted any more.
const KILLS_MAX: usize = 4;
/// A worker is lost after three silent heartbeats of a second: some stops are shorter, some longer.
const STOP_MS: (u64, u64) = (200, 4_500);
const PAUSE_MS: (u64, u64) = (50, 900);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// `kill -9`; whoever started it starts it again.
    Kill,
    /// SIGTERM: workers may leave for good then, the coordinator comes back.
    Terminate,
    /// SIGSTOP, and SIGCONT later.
    Stop { ms: u64 },
}

/// What is done to whom, after which pause.
#[derive(Debug)]
struct Step {
    pause: Duration,
    victim: &'static str,
    fault: Fault,
}

fn plan(seed: u64) -> Vec<Step> {
    let mut random = Random::new(seed);
    let mut kills: BTreeMap<&str, usize> = BTreeMap::new();
    let steps = (0..FAULTS).map(|_| {
        let victim = *random.pick(&VICTIMS);
        let killed = kills.entry(victim).or_default();
        let fault = match (victim, random.between(0, 3)) {
            ("coordinator", 3) => Fault::Terminate,
            (_, 0 | 1) if *killed < KILLS_MAX => Fault::Kill,
            _ => Fault::Stop {
                ms: random.between(STOP_MS.0, STOP_MS.1),
            },
        };
        *killed += usize::from(!matches!(fault, Fault::Stop { .. }));
        Step {
            pause: Duration::from_millis(random.between(PAUSE_MS.0, PAUSE_MS.1)),
            victim,
            fault,
        }
    });
    steps.collect()
}

/// What was really done: a run may be over before the plan is.
type Done = BTreeMap<(&'static str, &'static str), usize>;

fn disturb(run: &mut Run, steps: &[Step]) -> Done {
    let mut done = Done::new();
    for step in steps {
        wait_in_run(run, step.pause);
        if run.child.try_wait().expect("a child of ours").is_some() {
            break;
        }
        if strike(run, step) {
            let kind = match step.fault {
                Fault::Kill => "killed",
                Fault::Terminate => "terminated",
                Fault::Stop { .. } => "stopped",
            };
            *done.entry((step.victim, kind)).or_default() += 1;
        }
    }
    done
}

/// Lets the run go on for a while: chaos is about time, so this is no wait for a condition.
fn wait_in_run(run: &mut Run, pause: Duration) {
    let end = Instant::now() + pause;
    while Instant::now() < end && run.child.try_wait().expect("a child of ours").is_none() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn strike(run: &mut Run, step: &Step) -> bool {
    if step.victim == "launch" {
        return strike_launch(run, step.fault);
    }
    let Some(pid) = run.find_process(step.victim) else {
        return false;
    };
    match step.fault {
        Fault::Kill => signal("KILL", pid),
        Fault::Terminate => signal("TERM", pid),
        Fault::Stop { ms } => {
            signal("STOP", pid);
            wait_in_run(run, Duration::from_millis(ms));
            signal("CONT", pid);
        }
    }
    true
}

/// All die with it, and the same command goes on.
fn strike_launch(run: &mut Run, fault: Fault) -> bool {
    let pid = i32::try_from(run.child.id()).expect("a process id");
    match fault {
        Fault::Stop { ms } => {
            signal("STOP", pid);
            wait_in_run(run, Duration::from_millis(ms));
            signal("CONT", pid);
        }
        Fault::Kill | Fault::Terminate => {
            run.child.kill().expect("a child of ours");
            run.child.wait().expect("a child of ours");
            run.child = spawn(run.path(), &[]);
        }
    }
    true
}

#[test]
fn kills_and_stops_of_every_process_change_nothing() {
    let mut total = Done::new();
    for seed in SEEDS {
        let steps = plan(seed);
        let begin = Instant::now();
        let mut run = Run::launch(&[]);
        run.wait_for(|status| status["state"] == "running");
        let done = disturb(&mut run, &steps);
        let report = run.finish_well();
        println!("seed {seed}: {done:?} in {:.1?}", begin.elapsed());
        assert_eq!(
            adapter(&report),
            adapter(undisturbed()),
            "seed {seed}: {steps:#?}"
        );
        for (what, count) in done {
            *total.entry(what).or_default() += count;
        }
    }
    let faults: usize = total.values().sum();
    assert!(
        faults >= SEEDS.len() * 6,
        "too few faults took place: {total:?}"
    );
    for victim in VICTIMS {
        assert!(
            total.keys().any(|(name, _)| *name == victim),
            "{victim} was spared: {total:?}"
        );
    }
    assert!(total.contains_key(&("coordinator", "killed")), "{total:?}");
}

/// The time from a coordinator's death until all workers have joined its next life, as people see it.
#[test]
fn a_killed_coordinator_is_back_at_once() {
    let mut run = Run::launch(&["iterations=6"]);
    let before = run.wait_for(|status| status["committed"].as_u64() >= Some(1));
    let last = generations(&before).into_iter().max().expect("workers");
    let pid = run.process("coordinator");
    signal("KILL", pid);
    let begin = Instant::now();
    let back = run.wait_for(|status| {
        let now = generations(status);
        now.len() == 5 && now.into_iter().all(|generation| generation > last)
    });
    let took = begin.elapsed();
    println!("all five workers were back {took:.1?} after the kill");
    assert!(
        back["committed"].as_u64() >= before["committed"].as_u64(),
        "{back:#}"
    );
    assert_ne!(run.process("coordinator"), pid);
    run.finish_well();
}

fn generations(status: &Value) -> Vec<u64> {
    let workers = status["workers"].as_array().expect("workers");
    let generation = |worker: &Value| worker["generation"].as_u64();
    workers.iter().filter_map(generation).collect()
}
