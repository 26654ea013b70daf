//! Finding groups and versions in the record.

use std::ops::ControlFlow;

use retouch_proto::lookup::{Attempts, GroupQuery, GroupStage, VersionView};
use retouch_proto::task::RolloutResult;
use retouch_proto::{GroupId, Iteration};
use rusqlite::{Connection, Row, params};

use super::StoreError;
use super::reader::{Reader, ScoreRow, group_scores};
use crate::machine::record::Policy;

/// A group as the record has it.
pub(crate) struct Found {
    /// Names the attempt at its iteration.
    pub(crate) attempt: i64,
    /// Its name.
    pub(crate) group: GroupId,
    /// What the record knows of its way: nothing is under way there.
    pub(crate) stage: GroupStage,
    /// Whether its iteration was taken back.
    pub(crate) rewound: bool,
    /// The dataset row.
    pub(crate) dataset_row: u32,
    /// The refill round.
    pub(crate) round: u32,
    /// The policy that sampled it.
    pub(crate) policy: Option<Policy>,
    /// Its sampling.
    pub(crate) sampled: Option<RolloutResult>,
    /// Who sampled it.
    pub(crate) sampled_by: Option<String>,
    /// Who judged it.
    pub(crate) scored_by: Option<String>,
    /// Seconds that took.
    pub(crate) scoring_s: Option<f64>,
    /// Mean reward.
    pub(crate) reward_mean: Option<f64>,
    /// Why it was given up.
    pub(crate) dropped: Option<String>,
}

const GROUPS: &str = "SELECT iteration_id, iteration, idx, status, dataset_row, round, policy, \
     sampled, sampled_by, scored_by, scoring_s, reward_mean, kept, dropped \
     FROM groups JOIN iterations ON id = iteration_id \
     WHERE (?1 IS NULL OR iteration = ?1) AND (?2 IS NULL OR idx = ?2) \
     AND (?3 OR status != 'rewound') ORDER BY id DESC, idx";

const VERSIONS: &str = "SELECT iteration, version, state, metrics ->> '$.reward_mean', \
     (SELECT max(id) FROM checkpoints WHERE checkpoints.iteration = iterations.iteration), \
     (SELECT ema_adapter FROM checkpoints WHERE checkpoints.iteration = iterations.iteration \
      ORDER BY checkpoints.id DESC LIMIT 1) \
     FROM versions JOIN iterations ON iterations.id = iteration_id \
     WHERE status = 'committed' ORDER BY iteration";

impl Reader {
    /// Shows `look` the groups of an iteration and number, newest iteration first, until it has
    /// seen enough. Prompt, stage and limit of the query are its business.
    pub(crate) fn find(
        &self,
        query: &GroupQuery,
        mut look: impl FnMut(Found) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let iteration = query.iteration.map(|iteration| iteration.0);
        let all = query.attempts == Attempts::All;
        self.on(|connection| {
            // Row by row: a run has 100,000 groups with all their blobs, and a query wants the first few.
            let mut statement = connection.prepare(GROUPS)?;
            let mut rows = statement.query(params![iteration, query.index, all])?;
            while let Some(row) = rows.next()? {
                let seen = found(row)?.map(&mut look);
                match seen {
                    Ok(ControlFlow::Continue(())) => {}
                    enough => return Ok(enough.map(drop)),
                }
            }
            Ok(Ok(()))
        })?
    }

    /// The scores of one group in sample order.
    pub(crate) fn scores(&self, attempt: i64, index: u32) -> Result<Vec<ScoreRow>, StoreError> {
        self.on(|connection| group_scores(connection, attempt, index))?
    }

    /// What each committed iteration left behind, oldest first. A checkpoint that was deleted since is none.
    pub fn versions(&self) -> Result<Vec<VersionView>, StoreError> {
        let mut versions = self.on(versions)?;
        for version in &mut versions {
            let folder = self.folder.checkpoint(version.iteration);
            version.checkpointed &= folder.is_dir();
        }
        Ok(versions)
    }
}

fn found(row: &Row<'_>) -> rusqlite::Result<Result<Found, StoreError>> {
    let (policy, sampled): (Option<String>, Option<String>) = (row.get(6)?, row.get(7)?);
    let policy = match policy.map(|text| serde_json::from_str(&text)).transpose() {
        Ok(policy) => policy,
        Err(error) => return Ok(Err(StoreError::damaged("groups.policy", error))),
    };
    let sampled = match sampled.map(|text| serde_json::from_str(&text)).transpose() {
        Ok(sampled) => sampled,
        Err(error) => return Ok(Err(StoreError::damaged("groups.sampled", error))),
    };
    let (iteration, index) = (Iteration(row.get(1)?), row.get(2)?);
    let mut found = Found {
        attempt: row.get(0)?,
        group: GroupId { iteration, index },
        stage: GroupStage::Queued,
        rewound: row.get::<_, String>(3)? == "rewound",
        dataset_row: row.get(4)?,
        round: row.get(5)?,
        policy,
        sampled,
        sampled_by: row.get(8)?,
        scored_by: row.get(9)?,
        scoring_s: row.get(10)?,
        reward_mean: row.get(11)?,
        dropped: row.get(13)?,
    };
    found.stage = stage(&found, row.get(12)?);
    Ok(Ok(found))
}

fn stage(found: &Found, kept: Option<bool>) -> GroupStage {
    match kept {
        _ if found.dropped.is_some() => GroupStage::Dropped,
        Some(true) => GroupStage::Kept,
        Some(false) => GroupStage::Filtered,
        None if found.scored_by.is_some() => GroupStage::Scored,
        None if found.sampled.is_some() => GroupStage::Sampled,
        None => GroupStage::Queued,
    }
}

fn versions(connection: &Connection) -> rusqlite::Result<Vec<VersionView>> {
    let mut statement = connection.prepare(VERSIONS)?;
    let rows = statement.query_map([], |row| {
        Ok(VersionView {
            iteration: Iteration(row.get(0)?),
            version: row.get(1)?,
            state: row.get(2)?,
            reward_mean: row.get(3)?,
            checkpointed: row.get::<_, Option<i64>>(4)?.is_some(),
            ema_adapter: row.get(5)?,
        })
    })?;
    rows.collect()
}
