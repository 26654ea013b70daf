//! Many runs, some at a time: first undisturbed ones, which say what the result is and how long runs take here.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    place::Place,
    plan::{Kind, Plan},
    run::{self, End, Failure, Outcome, Task},
};

/// How many learner ranks there may be.
const RANKS: [u64; 2] = [1, 2];

/// Which runs are made, and how.
#[derive(Debug, Clone)]
pub(crate) struct Campaign {
    /// Each seed is run once for each of these.
    pub(crate) staleness: Vec<u64>,
    pub(crate) seeds: Vec<u64>,
    pub(crate) kinds: Vec<Kind>,
    /// Runs at a time.
    pub(crate) jobs: usize,
    /// How long a run may go on after the last thing that was done to it.
    pub(crate) limit: Duration,
    /// Whether the folders of failed runs stay.
    pub(crate) keep: bool,
    /// Whether each run's story is printed while it happens.
    pub(crate) aloud: bool,
}

/// The end that all runs of a staleness must have: that of the first.
type Ends = BTreeMap<u64, End>;

impl Campaign {
    /// All outcomes, those of undisturbed runs first; `each` sees every one as soon as it is there.
    pub(crate) fn make(&self, place: &Place, each: impl Fn(&Outcome) + Sync) -> Vec<Outcome> {
        let ends = Mutex::default();
        let each = |outcome: &mut Outcome| {
            judge(outcome, &mut lock(&ends));
            each(outcome);
        };
        let undisturbed = self.staleness.iter().flat_map(|staleness| {
            RANKS.map(|ranks| self.task(None, *staleness, Plan::undisturbed(ranks)))
        });
        let mut outcomes = self.run_all(place, undisturbed.collect(), &each);
        // The first ones also load what is cached afterwards.
        let usual = outcomes.iter().map(|outcome| outcome.wall).min();
        let usual = usual.unwrap_or_default();
        let disturbed = self.seeds.iter().flat_map(|seed| {
            let plan = Plan::new(*seed, &self.kinds);
            let task = |staleness: &u64| self.task(Some(*seed), *staleness, plan.clone());
            self.staleness.iter().map(task).collect::<Vec<_>>()
        });
        let disturbed = disturbed.map(|task| Task { usual, ..task }).collect();
        outcomes.extend(self.run_all(place, disturbed, &each));
        outcomes
    }

    fn task(&self, seed: Option<u64>, staleness: u64, plan: Plan) -> Task {
        Task {
            seed,
            staleness,
            plan,
            usual: Duration::ZERO,
            limit: self.limit,
            keep: self.keep,
            aloud: self.aloud,
        }
    }

    fn run_all(
        &self,
        place: &Place,
        tasks: VecDeque<Task>,
        each: &(impl Fn(&mut Outcome) + Sync),
    ) -> Vec<Outcome> {
        let (tasks, outcomes) = (Mutex::new(tasks), Mutex::new(Vec::new()));
        let work = || {
            loop {
                let task = lock(&tasks).pop_front();
                let Some(task) = task else { break };
                let mut outcome = run::make(place, task);
                each(&mut outcome);
                lock(&outcomes).push(outcome);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.jobs {
                scope.spawn(work);
            }
        });
        outcomes
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A run that ends otherwise than the first of its staleness has failed.
fn judge(outcome: &mut Outcome, ends: &mut Ends) {
    let Some(end) = &outcome.end else { return };
    let first = ends.entry(outcome.task.staleness).or_insert(end.clone());
    if end == first {
        return;
    }
    let states = first.states.iter().zip(&end.states);
    let what = match states.take_while(|(first, own)| first == own).count() {
        equal if equal == first.states.len() => "another adapter of the same states".to_owned(),
        equal => format!(
            "another adapter: it differs from iteration {} on",
            equal + 1
        ),
    };
    let failure = outcome.failure.take();
    outcome.failure = Some(match failure {
        Some(Failure { what: also, logs }) => Failure {
            what: format!("{what}; {also}"),
            logs,
        },
        None => Failure {
            what,
            logs: String::new(),
        },
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
