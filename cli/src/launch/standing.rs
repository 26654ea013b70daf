//! What the record says of a run without a coordinator: whether it failed, and from where it goes on.

use retouch_coordinator::{
    machine::{NOTHING_LEFT, record::Standing},
    store::{Reader, StoreError},
};
use retouch_proto::{
    Iteration, RunFolder,
    status::{Event, EventKind},
};

/// Why the run failed, if it did: no start of its coordinator goes on with it unless it is told to.
pub(super) fn failure(folder: &RunFolder) -> Option<String> {
    let record = Reader::open(folder.path()).ok()?;
    let Standing::Failed { reason } = record.standing().ok()? else {
        return None;
    };
    let committed = record.committed().ok()?.iteration;
    // One line, since it is to be the last.
    let reason = reason.lines().collect::<Vec<_>>().join("; ");
    Some(format!(
        "the run failed after iteration {committed}: {reason}; once that is mended, `retouch launch --retry` continues it"
    ))
}

/// Whether somebody has paused the run, which it stays until it is resumed.
pub(super) fn is_paused(folder: &RunFolder) -> bool {
    let standing = Reader::open(folder.path()).and_then(|record| record.standing());
    matches!(standing, Ok(Standing::Paused))
}

/// What a run says that ended well before all of its iterations were done.
pub(super) fn ended_early(folder: &RunFolder, iterations: u32) -> Option<String> {
    let record = Reader::open(folder.path()).ok()?;
    let committed = record.committed().ok()?.iteration;
    let events = record.last_events(EVENTS_MAX).ok()?;
    (committed.0 < iterations).then(|| early_end(committed, iterations, &events))
}

fn early_end(committed: Iteration, iterations: u32, last_events: &[Event]) -> String {
    let all_banned = last_events
        .iter()
        .any(|event| event.kind == EventKind::Control && event.message == NOTHING_LEFT);
    match all_banned {
        true => format!("ended after iteration {committed} of {iterations}: {NOTHING_LEFT}"),
        false => format!(
            "stopped after iteration {committed} of {iterations}; the same command goes on from it"
        ),
    }
}

/// Whether there is something to evaluate.
pub(super) fn has_adapter(folder: &RunFolder) -> Result<bool, StoreError> {
    Ok(Reader::open(folder.path())?.newest_adapter()?.is_some())
}

/// Events among which that of the end is.
const EVENTS_MAX: usize = 64;

/// What a run that ends here is kept of, and how it goes on.
pub(super) fn kept(folder: &RunFolder) -> String {
    match Kept::of(folder) {
        Ok(kept) => kept.text(),
        Err(error) => format!("what is written down can't be said: {error}"),
    }
}

/// How far a run has come.
#[derive(Debug, Clone, Copy)]
struct Kept {
    committed: Iteration,
    /// Whether there is anything to write down: an iteration may have trained nothing.
    trained: bool,
    checkpoint: Iteration,
}

impl Kept {
    fn of(folder: &RunFolder) -> Result<Self, StoreError> {
        let record = Reader::open(folder.path())?;
        let committed = record.committed()?;
        Ok(Self {
            committed: committed.iteration,
            trained: committed.state.is_some(),
            checkpoint: record.checkpoint()?.committed.iteration,
        })
    }

    fn text(self) -> String {
        let Self {
            committed,
            trained,
            checkpoint,
        } = self;
        if committed == Iteration(0) {
            return "no iteration was done yet; the same command begins again".to_owned();
        }
        if !trained || checkpoint >= committed {
            return format!(
                "iteration {committed} is written down; the same command goes on from it"
            );
        }
        let again = match checkpoint {
            Iteration(0) => "there is no checkpoint yet: the same command begins again".to_owned(),
            checkpoint => format!("the same command goes on from checkpoint {checkpoint}"),
        };
        format!("iteration {committed} could not be written down in time; {again}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_ended_early_says_why() {
        let event = Event {
            sequence: 1,
            time_unix_ms: 0,
            iteration: Iteration(4),
            kind: EventKind::Control,
            message: NOTHING_LEFT.to_owned(),
        };
        let said = early_end(Iteration(3), 9, &[event]);
        assert!(said.ends_with("nothing is left to learn"), "{said}");
        let said = early_end(Iteration(3), 9, &[]);
        assert!(said.starts_with("stopped after iteration 3 of 9"), "{said}");
    }

    #[test]
    fn what_is_kept_is_said_with_what_comes_next() {
        let text = |committed, checkpoint, trained| {
            let (committed, checkpoint) = (Iteration(committed), Iteration(checkpoint));
            let kept = Kept {
                committed,
                trained,
                checkpoint,
            };
            kept.text()
        };
        assert!(text(0, 0, false).starts_with("no iteration was done yet"));
        assert!(text(3, 3, true).starts_with("iteration 3 is written down"));
        assert!(text(3, 0, false).starts_with("iteration 3 is written down"));
        assert!(text(3, 2, true).ends_with("goes on from checkpoint 2"));
        assert!(text(3, 0, true).contains("there is no checkpoint yet"));
    }
}
