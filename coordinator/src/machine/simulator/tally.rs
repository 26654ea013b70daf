//! What happened in many runs, in numbers.

use std::fmt;

use super::faults::Strike;

/// Counts over runs.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Runs to the end.
    pub runs: u64,
    /// Runs that had to end with their variant's adapter, and did.
    pub compared: u64,
    /// Runs that were given up after too many failed attempts, as the rules say.
    pub failed: u64,
    /// Events of the virtual world.
    pub steps: u64,
    /// Time that passed in it.
    pub virtual_ms: u64,
    /// Things that struck, by [`Strike`].
    pub strikes: [u64; Strike::ALL.len()],
    /// Messages lost.
    pub lost: u64,
    /// Messages doubled.
    pub doubled: u64,
    /// Messages late, and overtaken by later ones.
    pub late: u64,
    /// Tasks that failed by themselves.
    pub tasks_failed: u64,
    /// Tasks of poisoned rows that failed.
    pub poisoned: u64,
    /// Starts of coordinators.
    pub coordinator_starts: u64,
    /// Starts of workers.
    pub worker_starts: u64,
    /// Batches that were written to the record.
    pub writes: u64,
    /// Iterations that happened.
    pub commits: u64,
    /// Rewinds to a checkpoint.
    pub rewinds: u64,
    /// Groups that were trained on.
    pub trained: u64,
    /// Groups that the filter left out.
    pub filtered: u64,
    /// Groups that were given up.
    pub dropped: u64,
    /// Times that a machine was rebuilt from the record and compared.
    pub rebuilt: u64,
}

impl Tally {
    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        let mut other = other.clone();
        let pairs = self.counts().into_iter().zip(other.counts());
        pairs.for_each(|(count, more)| *count += *more);
        let strikes = self.strikes.iter_mut().zip(other.strikes);
        strikes.for_each(|(count, more)| *count += more);
    }

    fn counts(&mut self) -> [&mut u64; 19] {
        [
            &mut self.runs,
            &mut self.compared,
            &mut self.failed,
            &mut self.steps,
            &mut self.virtual_ms,
            &mut self.lost,
            &mut self.doubled,
            &mut self.late,
            &mut self.tasks_failed,
            &mut self.poisoned,
            &mut self.coordinator_starts,
            &mut self.worker_starts,
            &mut self.writes,
            &mut self.commits,
            &mut self.rewinds,
            &mut self.trained,
            &mut self.filtered,
            &mut self.dropped,
            &mut self.rebuilt,
        ]
    }

    /// Everything that struck.
    pub fn struck(&self) -> u64 {
        self.strikes.iter().sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} runs: {} ended with the adapter of their undisturbed run, {} were given up after too many failed \
             attempts, {} with groups given up or other bits just ended",
            self.runs,
            self.compared,
            self.failed,
            self.runs - self.compared - self.failed,
        )?;
        writeln!(
            f,
            "{} events, {} virtual hours, {} coordinator starts, {} worker starts, {} writes to the record, \
             {} machines rebuilt from it",
            self.steps,
            self.virtual_ms / 3_600_000,
            self.coordinator_starts,
            self.worker_starts,
            self.writes,
            self.rebuilt,
        )?;
        writeln!(
            f,
            "{} iterations committed, {} rewinds; groups: {} trained, {} filtered, {} given up",
            self.commits, self.rewinds, self.trained, self.filtered, self.dropped,
        )?;
        writeln!(f, "{} faults struck:", self.struck())?;
        for (strike, count) in Strike::ALL.iter().zip(self.strikes) {
            writeln!(f, "  {count:>12} {}", strike.name())?;
        }
        write!(
            f,
            "and {} messages lost, {} doubled, {} late; {} tasks failed by themselves, {} because of poison",
            self.lost, self.doubled, self.late, self.tasks_failed, self.poisoned,
        )
    }
}
