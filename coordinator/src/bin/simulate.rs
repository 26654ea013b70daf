//! Simulated runs from the command line: `cargo xtask sim` calls this.

use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use retouch_coordinator::machine::simulator::campaign::{self, Campaign};
use retouch_coordinator::machine::simulator::fleet::Crew;
use retouch_coordinator::machine::simulator::scale::Scale;
use retouch_coordinator::machine::simulator::schedule::{Schedule, Table};

const USAGE: &str = "\
usage: simulate [--seeds N] [--from SEED] [--workers M] [--threads T]
           runs N seeds of at least 10 fake workers each, and says what happened
       simulate --seed SEED [--workers M]
           tells the story of one
       simulate --schedule [--rollout N] [--reward N] [--learner N] [--groups N]
                           [--rollout-s S] [--score-s S] [--train-s S] [--jitter SHARE] [--report FILE]
           what staleness_max = 0, 1, 2, 3 make of the same work: seconds of a whole iteration's rollouts and
           scoring, summed over workers, and of its training step; or as a run's report.json has them
       simulate --scale [--groups N]
           what an event costs with 10, 100, 1,000 and 10,000 workers";

/// Options with a value.
const OPTIONS: [&str; 14] = [
    "--seeds",
    "--from",
    "--workers",
    "--threads",
    "--seed",
    "--rollout",
    "--reward",
    "--learner",
    "--groups",
    "--rollout-s",
    "--score-s",
    "--train-s",
    "--jitter",
    "--report",
];

/// Means of the last 20 of 60 iterations of `examples/quickstart.toml` on two cores, as its record has them.
const QUICKSTART_STAGES: Stages = Stages {
    rollout_s: 7.1,
    score_s: 0.55,
    train_s: 10.0,
};

/// How often progress is told, in seeds.
const PROGRESS_EVERY: u64 = 50_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), String> {
    match arguments.first().map(String::as_str) {
        Some("--schedule") => schedule(&Options::parse(&arguments[1..])?),
        Some("--scale") => scale(&Options::parse(&arguments[1..])?),
        _ => seeds(&Options::parse(arguments)?),
    }
}

fn seeds(options: &Options) -> Result<(), String> {
    let workers = options.get("--workers")?;
    if let Some(seed) = options.get("--seed")? {
        let story = campaign::tell(seed, workers).map_err(|failure| {
            let lines = failure.story.join("\n");
            format!("{lines}\nseed {seed}: {}", failure.problem)
        })?;
        println!("{}", story.join("\n"));
        return Ok(());
    }
    let from: u64 = options.get("--from")?.unwrap_or(0);
    let seeds: u64 = options.get("--seeds")?.unwrap_or(10_000);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = options.get("--threads")?.unwrap_or(cores);
    let campaign = Campaign {
        seeds: from..from + seeds,
        workers,
        threads,
    };
    many(&campaign)
}

fn many(campaign: &Campaign) -> Result<(), String> {
    let started = Instant::now();
    let told = AtomicU64::new(0);
    let progress = |done: u64| {
        let part = done / PROGRESS_EVERY;
        if told.fetch_max(part, Ordering::Relaxed) < part {
            let elapsed_s = started.elapsed().as_secs_f64();
            eprintln!("{done} seeds, {elapsed_s:.0} s");
        }
    };
    let tally = campaign
        .run(progress)
        .map_err(|failure| failure.to_string())?;
    let elapsed_s = started.elapsed().as_secs_f64();
    println!("{tally}");
    println!(
        "{:.1} s on {} threads, {:.0} runs per second",
        elapsed_s,
        campaign.threads,
        tally.runs as f64 / elapsed_s
    );
    Ok(())
}

/// A small cluster by default, with the stage times of the quickstart on two cores.
fn schedule(options: &Options) -> Result<(), String> {
    let or =
        |option: &str, otherwise: f64| Ok::<f64, String>(options.get(option)?.unwrap_or(otherwise));
    let stages = match options.text("--report") {
        Some(path) => stages_of(path)?,
        None => QUICKSTART_STAGES,
    };
    let schedule = Schedule {
        crew: Crew {
            rollout: options.get("--rollout")?.unwrap_or(2),
            reward: options.get("--reward")?.unwrap_or(1),
            learner: options.get("--learner")?.unwrap_or(2),
        },
        groups: options.get("--groups")?.unwrap_or(8),
        rollout_s: or("--rollout-s", stages.rollout_s)?,
        score_s: or("--score-s", stages.score_s)?,
        train_s: or("--train-s", stages.train_s)?,
        jitter: or("--jitter", 0.2)?,
    };
    println!("{schedule:?}");
    println!("{}", Table((0..4).map(|k| schedule.measure(k)).collect()));
    Ok(())
}

/// Seconds of an iteration's stages.
struct Stages {
    rollout_s: f64,
    score_s: f64,
    train_s: f64,
}

/// Means of an iteration of a run's `report.json`.
fn stages_of(path: &str) -> Result<Stages, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let report: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| format!("{path}: {error}"))?;
    let iterations = report["iterations"].as_f64().filter(|count| *count > 0.0);
    let mean = |stage: &str| {
        let seconds = report["stage_s"][stage].as_f64();
        let mean = seconds
            .zip(iterations)
            .map(|(seconds, count)| seconds / count);
        mean.ok_or_else(|| format!("{path}: stage_s has no {stage:?}, or there were no iterations"))
    };
    Ok(Stages {
        rollout_s: mean("rollout, worker time")?,
        score_s: mean("score, worker time")?,
        train_s: mean("train")?,
    })
}

fn scale(options: &Options) -> Result<(), String> {
    let groups: u32 = options.get("--groups")?.unwrap_or(100_000);
    println!(
        "workers   groups   events  dispatches  machine us/event  all us/event  KiB/worker joined  at the end"
    );
    for workers in [10, 100, 1_000, 10_000_usize] {
        let scale = Scale {
            workers,
            // Small clusters show in fewer groups what an event costs.
            groups: groups.min(workers as u32 * 200),
            groups_per_iteration: (workers as u32 / 2).max(8),
        };
        let started = Instant::now();
        let before_kib = resident_kib();
        let mut joined_kib = 0;
        let clock_ns = || started.elapsed().as_nanos() as u64;
        let totals = scale.run(&clock_ns, || joined_kib = resident_kib());
        let per_event_us = |ns: u64| ns as f64 / 1e3 / totals.events as f64;
        let per_worker = |kib: u64| kib.saturating_sub(before_kib) as f64 / workers as f64;
        println!(
            "{workers:>7}  {:>7}  {:>7}  {:>10}  {:>16.2}  {:>12.2}  {:>17.1}  {:>10.1}",
            scale.groups,
            totals.events,
            totals.dispatches,
            per_event_us(totals.machine_ns),
            per_event_us(clock_ns()),
            per_worker(joined_kib),
            per_worker(resident_kib()),
        );
    }
    Ok(())
}

/// Memory of this process.
fn resident_kib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    4 * pages.unwrap_or(0_u64)
}

/// Options with their values.
struct Options(Vec<(String, String)>);

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let pair = |pair: &[String]| match pair {
            [option, value] if OPTIONS.contains(&option.as_str()) => {
                Ok((option.clone(), value.clone()))
            }
            other => Err(format!("{} is no option with a value\n{USAGE}", other[0])),
        };
        arguments
            .chunks(2)
            .map(pair)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn text(&self, option: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == option);
        found.map(|(_, value)| value.as_str())
    }

    /// A number; `1_000` is one too.
    fn get<T: FromStr>(&self, option: &str) -> Result<Option<T>, String> {
        let parse = |value: &str| {
            let parsed = value.replace('_', "").parse();
            parsed.map_err(|_| format!("{option} {value}: not a number that makes sense here"))
        };
        self.text(option).map(parse).transpose()
    }
}
