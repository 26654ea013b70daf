//! Many seeds, on all cores; and the story of the one that fails.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::thread;

use retouch_proto::ContentHash;

use super::faults::STRIKES_MIN;
use super::scenario::Scenario;
use super::story::Story;
use super::tally::Tally;
use super::world::{Ended, World};

/// Seeds that a thread takes at a time.
const CHUNK: u64 = 16;

/// What to run.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// Which seeds.
    pub seeds: Range<u64>,
    /// Fake workers in every run; `None` is the seed's own choice.
    pub workers: Option<usize>,
    /// Threads.
    pub threads: usize,
}

/// A run that broke a rule.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What was wrong.
    pub problem: String,
    /// What happened until then.
    pub story: Vec<String>,
}

/// Lines of a story that are shown with a failure.
const LINES_SHOWN: usize = 120;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left_out = self.story.len().saturating_sub(LINES_SHOWN);
        if left_out > 0 {
            writeln!(
                f,
                "... {left_out} lines before; `cargo xtask sim --seed {}` shows all",
                self.seed
            )?;
        }
        for line in &self.story[left_out..] {
            writeln!(f, "{line}")?;
        }
        write!(f, "seed {}: {}", self.seed, self.problem)
    }
}

impl Campaign {
    /// Runs all seeds, or until one fails; `progress` is told how many are through.
    ///
    /// # Errors
    /// The first failure that was met.
    pub fn run(&self, progress: impl Fn(u64) + Sync) -> Result<Tally, Box<Failure>> {
        listen_to_panics();
        let next = AtomicU64::new(self.seeds.start);
        let stopped = AtomicBool::new(false);
        let result = Mutex::new((Tally::default(), None));
        let work = || {
            let mut expected = Expected::default();
            let mut tally = Tally::default();
            while !stopped.load(Ordering::Relaxed) {
                let first = next.fetch_add(CHUNK, Ordering::Relaxed);
                let chunk = first..(first + CHUNK).min(self.seeds.end);
                if chunk.is_empty() {
                    break;
                }
                let failure = chunk
                    .into_iter()
                    .find_map(|seed| run_seed(seed, self.workers, &mut expected, &mut tally).err());
                if let Some(failure) = failure {
                    stopped.store(true, Ordering::Relaxed);
                    result.lock().expect("nobody panics").1 = Some(failure);
                }
                progress(first - self.seeds.start);
            }
            result.lock().expect("nobody panics").0.add(&tally);
        };
        thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(work);
            }
        });
        let (tally, failure) = result.into_inner().expect("nobody panics");
        failure.map_or(Ok(tally), |failure| Err(Box::new(failure)))
    }
}

/// Runs one seed and tells everything that happens.
///
/// # Errors
/// If it fails.
pub fn tell(seed: u64, workers: Option<usize>) -> Result<Vec<String>, Box<Failure>> {
    listen_to_panics();
    let story = Story::kept();
    let world = || World::new(Scenario::of(seed, workers)).told_to(story.clone());
    let ended = quietly(|| judge(world().run(), seed, workers, &mut Expected::default()));
    match ended.and_then(|judged| judged) {
        Ok(_) => Ok(story.lines()),
        Err(problem) => Err(Box::new(Failure {
            seed,
            problem,
            story: story.lines(),
        })),
    }
}

/// Runs a seed; if it fails, once more to hear its story.
fn run_seed(
    seed: u64,
    workers: Option<usize>,
    expected: &mut Expected,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let run = || World::new(Scenario::of(seed, workers)).run();
    let judged = quietly(|| judge(run(), seed, workers, expected)).and_then(|judged| judged);
    match judged {
        Ok(more) => {
            tally.add(&more);
            Ok(())
        }
        Err(problem) => Err(match tell(seed, workers) {
            Err(failure) => *failure,
            Ok(story) => Failure {
                seed,
                problem,
                story,
            },
        }),
    }
}

/// The final adapter of each variant when nothing goes wrong.
#[derive(Default)]
pub(super) struct Expected(HashMap<u64, Option<ContentHash>>);

impl Expected {
    pub(super) fn adapter(&mut self, variant: u64) -> Option<ContentHash> {
        *self.0.entry(variant).or_insert_with(|| {
            let ended = World::new(Scenario::undisturbed(variant)).run();
            assert_eq!(ended.outcome.failure, None);
            ended.outcome.ema_adapter
        })
    }
}

/// Whether a run ended as it must.
fn judge(
    ended: Ended,
    seed: u64,
    workers: Option<usize>,
    expected: &mut Expected,
) -> Result<Tally, String> {
    let scenario = Scenario::of(seed, workers);
    let Ended {
        outcome,
        mut tally,
        dropped,
        ..
    } = ended;
    if tally.struck() < STRIKES_MIN as u64 {
        return Err(format!("only {} faults struck", tally.struck()));
    }
    let may_fail = scenario.faults.can_fail_tasks();
    if let Some(failure) = outcome.failure {
        tally.failed += 1;
        return match may_fail && failure.contains("failed") {
            true => Ok(tally),
            false => Err(format!("the run was given up: {failure}")),
        };
    }
    if outcome.iteration.0 != scenario.config.iterations {
        return Err(format!("the run ended at iteration {}", outcome.iteration));
    }
    let poisoned = scenario.poison.map(|poison| poison.row);
    let other = dropped.iter().find(|(row, _)| Some(*row) != poisoned);
    if let Some((row, reason)) = other
        && !may_fail
    {
        return Err(format!("a group of row {row} was given up: {reason}"));
    }
    let comparable = other.is_none() && !scenario.faults.other_devices;
    if comparable {
        tally.compared += 1;
        if outcome.ema_adapter != expected.adapter(scenario.variant) {
            return Err("the adapter is another one than without faults (A8, A9)".into());
        }
    }
    Ok(tally)
}

thread_local! {
    /// The panic of a simulated run on this thread, with its place; `None` while nobody listens.
    static HEARD: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics of simulated runs are findings, not noise on the terminal.
fn listen_to_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let listens = HEARD.with_borrow_mut(|heard| {
                let place = info.location().map(ToString::to_string);
                heard.as_mut().map(|heard| {
                    *heard = format!(
                        "{} ({})",
                        message(info.payload()),
                        place.unwrap_or_default()
                    );
                })
            });
            if listens.is_none() {
                usual(info);
            }
        }));
    });
}

fn quietly<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    HEARD.set(Some(String::new()));
    let ended = panic::catch_unwind(AssertUnwindSafe(run));
    let heard = HEARD.take();
    ended.map_err(|_| heard.unwrap_or_default())
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_default()
}
