//! The record for reports and people.

use std::path::Path;

use retouch_proto::status::{Event, EventKind, IterationMetrics};
use retouch_proto::task::SampleScore;
use retouch_proto::{ContentHash, Iteration, RunFolder};
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::{StoreError, load, schema};
use crate::machine::record::{Checkpoint, Committed, Standing};

/// Reads a record, while the run goes on or after it.
pub struct Reader {
    connection: Connection,
    /// The run folder, or that of a checkpoint.
    pub(super) folder: RunFolder,
}

/// A candidate's score.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScoreRow {
    /// Reward and terms.
    pub(crate) score: SampleScore,
    /// Its advantage, if the group was trained on.
    pub(crate) advantage: Option<f64>,
}

impl Reader {
    /// Opens the record of a run folder, an older program's too.
    ///
    /// # Errors
    /// If there is none, it is corrupt, or a newer program wrote it.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let folder = RunFolder::new(folder);
        let path = folder.record();
        let opened = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY);
        let connection = opened.map_err(|error| StoreError::sqlite(&path, error))?;
        let reader = Self { connection, folder };
        reader.on(schema::check_version)??;
        Ok(reader)
    }

    pub(super) fn on<T>(
        &self,
        operation: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let failed = |error| StoreError::sqlite(&self.folder.record(), error);
        operation(&self.connection).map_err(failed)
    }

    /// Metrics of committed iterations, oldest first, without rewound attempts.
    pub fn iterations(&self) -> Result<Vec<IterationMetrics>, StoreError> {
        self.on(|connection| iteration_metrics(connection, ALL))?
    }

    /// The last durable checkpoint; the start of the run if there is none.
    pub fn checkpoint(&self) -> Result<Checkpoint, StoreError> {
        let query = "SELECT checkpoint FROM checkpoints ORDER BY id DESC LIMIT 1";
        let text: Option<String> =
            self.on(|connection| connection.query_row(query, [], |row| row.get(0)).optional())?;
        let Some(text) = text else {
            return Ok(Checkpoint::START);
        };
        serde_json::from_str(&text).map_err(|error| StoreError::damaged("checkpoints", error))
    }

    /// How the run stands.
    pub fn standing(&self) -> Result<Standing, StoreError> {
        self.on(load::standing)?
    }

    /// What the last committed iteration left behind.
    pub fn committed(&self) -> Result<Committed, StoreError> {
        let newest = self.on(load::newest_commit)?;
        newest.map_or(Ok(Committed::START), |text| {
            serde_json::from_str(&text).map_err(|error| StoreError::damaged("versions", error))
        })
    }

    /// The newest exported adapter of the committed iterations, and of which of them it is.
    pub fn newest_adapter(&self) -> Result<Option<(Iteration, ContentHash)>, StoreError> {
        let committed = self.committed()?.iteration;
        let adapters = self.adapters()?;
        Ok(adapters
            .into_iter()
            .rfind(|(iteration, _)| *iteration <= committed))
    }

    /// The EMA adapters of all checkpoints, oldest first.
    pub fn adapters(&self) -> Result<Vec<(Iteration, ContentHash)>, StoreError> {
        let query =
            "SELECT iteration, ema_adapter FROM checkpoints WHERE ema_adapter NOT NULL ORDER BY id";
        let rows: Vec<(u32, String)> = self.on(|connection| {
            let mut statement = connection.prepare(query)?;
            statement
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })?;
        let parse = |(iteration, hash): (u32, String)| {
            let hash = hash
                .parse()
                .map_err(|error| StoreError::damaged("checkpoints", error))?;
            Ok((Iteration(iteration), hash))
        };
        rows.into_iter().map(parse).collect()
    }

    /// The last events, oldest first.
    pub fn last_events(&self, count: usize) -> Result<Vec<Event>, StoreError> {
        self.on(|connection| last_events(connection, count))
    }
}

/// As many rows as there are.
pub(super) const ALL: usize = usize::MAX >> 1;

type Read<T> = rusqlite::Result<Result<T, StoreError>>;

pub(super) fn iteration_metrics(
    connection: &Connection,
    last: usize,
) -> Read<Vec<IterationMetrics>> {
    let query = "SELECT metrics FROM iterations WHERE status = 'committed' ORDER BY iteration DESC LIMIT ?1";
    let texts: Vec<String> = connection
        .prepare(query)?
        .query_map([last as i64], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(texts.iter().rev().map(|text| metrics(text)).collect())
}

fn metrics(text: &str) -> Result<IterationMetrics, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::damaged("iterations.metrics", error))
}

pub(super) fn group_scores(
    connection: &Connection,
    attempt: i64,
    index: u32,
) -> Read<Vec<ScoreRow>> {
    let query = "SELECT reward, terms, advantage FROM scores WHERE iteration_id = ?1 AND idx = ?2 ORDER BY sample";
    let mut statement = connection.prepare_cached(query)?;
    let rows = statement.query_map((attempt, index), |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    })?;
    let rows: Vec<(f64, String, Option<f64>)> = rows.collect::<Result<_, _>>()?;
    let row = |(reward, terms, advantage): (f64, String, Option<f64>)| {
        let terms = serde_json::from_str(&terms)
            .map_err(|error| StoreError::damaged("scores.terms", error))?;
        Ok(ScoreRow {
            score: SampleScore { reward, terms },
            advantage,
        })
    };
    Ok(rows.into_iter().map(row).collect())
}

/// SQLite's integers are signed; ours are never negative.
pub(super) fn unsigned(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

pub(super) fn last_events(connection: &Connection, count: usize) -> rusqlite::Result<Vec<Event>> {
    let query = "SELECT sequence, time_unix_ms, iteration, kind, message FROM events \
                 ORDER BY sequence DESC LIMIT ?1";
    let mut statement = connection.prepare(query)?;
    let rows = statement.query_map([count as i64], |row| {
        Ok(Event {
            sequence: unsigned(row, 0)?,
            time_unix_ms: unsigned(row, 1)?,
            iteration: Iteration(row.get(2)?),
            kind: EventKind::from_name(&row.get::<_, String>(3)?).unwrap_or(EventKind::Control),
            message: row.get(4)?,
        })
    })?;
    let mut events = rows.collect::<Result<Vec<_>, _>>()?;
    events.reverse();
    Ok(events)
}
