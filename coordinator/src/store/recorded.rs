//! The status of a run that nobody serves: what the record knows of it.

use retouch_proto::status::{GroupCounts, Rates, RunState, RunStatus, Stage, Totals};
use retouch_proto::{Iteration, RunConfig};
use rusqlite::{Connection, OptionalExtension};

use super::load::{self, RECENT};
use super::reader::iteration_metrics;
use super::{Reader, StoreError};
use crate::machine::record::Standing;

impl Reader {
    /// The status as far as the record has it: no workers, rates or stalls, and no time since a start.
    ///
    /// A run that was interrupted is in the state in which it would go on.
    ///
    /// # Errors
    /// If the record can't be read.
    pub fn status(&self, config: &RunConfig) -> Result<RunStatus, StoreError> {
        let committed = self.committed()?;
        let (state, reason) = state(self.standing()?, committed.iteration, config.iterations);
        let next = committed.iteration.next();
        Ok(RunStatus {
            run: config.name.clone(),
            state,
            reason,
            iteration: Iteration(next.0.min(config.iterations)),
            committed: committed.iteration,
            checkpointed: self.checkpoint()?.committed.iteration,
            checkpoint_pending: false,
            iterations: config.iterations,
            stage: Stage::Idle,
            groups: self.on(|connection| group_counts(connection, next))?,
            workers: Vec::new(),
            version: committed.policy.hash().map(|hash| hash.to_string()),
            rates: Rates::default(),
            history: self.on(|connection| iteration_metrics(connection, RECENT))??,
            totals: self.totals()?,
            eta_s: None,
            uptime_s: 0.0,
            stalls: Vec::new(),
        })
    }

    fn totals(&self) -> Result<Totals, StoreError> {
        let text = self.on(load::totals)?;
        text.map_or(Ok(Totals::default()), |text| {
            serde_json::from_str(&text).map_err(|error| StoreError::damaged("totals", error))
        })
    }
}

/// As the machine would be in after a start.
fn state(standing: Standing, committed: Iteration, iterations: u32) -> (RunState, Option<String>) {
    let ended = |last: Iteration, otherwise| match committed >= last {
        true => RunState::Finished,
        false => otherwise,
    };
    match standing {
        Standing::Running => (ended(Iteration(iterations), RunState::Running), None),
        Standing::Paused => (RunState::Paused, None),
        Standing::Draining { last } => (ended(last, RunState::Draining), None),
        Standing::Stopping { failure } => (RunState::Stopping, failure),
        Standing::Stopped => (RunState::Finished, None),
        Standing::Failed { reason } => (RunState::Failed, Some(reason)),
    }
}

/// The groups of an iteration that was left open. Who sampled or scored what is not recorded until it is done.
fn group_counts(connection: &Connection, iteration: Iteration) -> rusqlite::Result<GroupCounts> {
    let query = "SELECT count(*), coalesce(sum(dropped IS NOT NULL), 0), \
                 coalesce(sum(dropped IS NULL AND scored_by IS NOT NULL), 0), \
                 coalesce(sum(dropped IS NULL AND scored_by IS NULL AND sampled_by IS NOT NULL), 0) \
                 FROM groups JOIN iterations ON id = iteration_id WHERE status = 'open' AND iteration = ?1";
    let counts = connection.query_row(query, [iteration.0], |row| {
        let (total, dropped, scored, sampled): (u32, u32, u32, u32) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        Ok(GroupCounts {
            total,
            queued: total - dropped - scored - sampled,
            sampled,
            scored,
            dropped,
            ..GroupCounts::default()
        })
    });
    Ok(counts.optional()?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use retouch_proto::GroupId;

    use super::super::fixture::MadeUpRun;
    use super::*;
    use crate::machine::record::{DrawnGroup, Entry};

    fn status(run: &MadeUpRun) -> RunStatus {
        let reader = Reader::open(run.path()).unwrap();
        reader.status(&run.config).unwrap()
    }

    #[test]
    fn a_record_says_how_far_the_run_came_and_what_was_open() {
        let mut run = MadeUpRun::with_checkpoints(2);
        run.config.iterations = 5;
        let group = |index| DrawnGroup {
            group: GroupId {
                iteration: Iteration(3),
                index,
            },
            row: index,
            round: 0,
            position: 21,
        };
        let dropped = Entry::Dropped {
            group: group(1).group,
            reason: "3 attempts failed".into(),
        };
        let opened = Entry::Opened {
            iteration: Iteration(3),
            position: 20,
        };
        let entries = [
            opened,
            Entry::Drawn(group(0)),
            Entry::Drawn(group(1)),
            dropped,
        ];
        run.store().write(&entries).unwrap();

        let status = status(&run);
        assert_eq!(
            (status.state, status.reason.as_deref()),
            (RunState::Running, None)
        );
        assert_eq!(
            (status.iteration, status.committed, status.checkpointed),
            (Iteration(3), Iteration(2), Iteration(2))
        );
        assert_eq!(status.history.len(), 2);
        assert!(status.version.is_some() && status.workers.is_empty());
        let counts = &status.groups;
        assert_eq!((counts.total, counts.queued, counts.dropped), (2, 1, 1));
    }

    #[test]
    fn the_state_is_that_in_which_the_run_ended_or_would_go_on() {
        let state = |standing, committed| state(standing, Iteration(committed), 5).0;
        let last = Iteration(3);
        for (standing, committed, expected) in [
            (Standing::Running, 4, RunState::Running),
            (Standing::Running, 5, RunState::Finished),
            (Standing::Paused, 4, RunState::Paused),
            (Standing::Draining { last }, 2, RunState::Draining),
            (Standing::Draining { last }, 3, RunState::Finished),
            (Standing::Stopped, 2, RunState::Finished),
        ] {
            assert_eq!(state(standing.clone(), committed), expected, "{standing:?}");
        }
        let mut run = MadeUpRun::with_checkpoints(1);
        run.config.iterations = 5;
        let reason = "the disk is full".to_owned();
        let failed = Entry::Stands(Standing::Failed { reason });
        run.store().write(&[failed]).unwrap();
        let status = status(&run);
        assert_eq!(status.state, RunState::Failed);
        assert_eq!(status.reason.as_deref(), Some("the disk is full"));
    }
}
