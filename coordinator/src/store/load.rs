//! From rows to what the machine starts from.

use rusqlite::{Connection, OptionalExtension};

use super::reader::{group_scores, iteration_metrics, unsigned};
use super::{Loaded, parsed};
use crate::machine::record::{
    Committed, DrawnGroup, GroupRecord, OpenRecord, Policy, Record, Standing,
};
use retouch_proto::task::{RolloutResult, ScoreResult};
use retouch_proto::{GroupId, Iteration};

/// Iterations whose metrics are loaded.
pub(super) const RECENT: usize = 100;

/// Parses JSON out of the database; `?`-able both ways.
macro_rules! parse {
    ($what:literal, $text:expr) => {
        match parsed($what, $text) {
            Ok(value) => value,
            Err(error) => return Ok(Err(error)),
        }
    };
}

pub(super) fn record(connection: &Connection, incarnation: u32) -> Loaded<Record> {
    let mut record = Record::empty(incarnation);
    if let Some(text) = newest_commit(connection)? {
        record.committed = parse!("versions", &text);
    }
    if let Some(text) = last_checkpoint(connection, record.committed.iteration)? {
        record.checkpoint = parse!("checkpoints", &text);
        record.policies = record.checkpoint.earlier.clone();
        record.policies.push(record.checkpoint.committed.policy);
    }
    // A state that was only derived from the seed so far has a name once it is written down.
    let checkpointed = record.checkpoint.committed.iteration;
    if checkpointed == record.committed.iteration {
        record.committed = record.checkpoint.committed;
    }
    for text in &committed_after(connection, checkpointed)? {
        let committed: Committed = parse!("versions", text);
        record.policies.push(committed.policy);
    }
    record.standing = match standing(connection)? {
        Ok(standing) => standing,
        Err(error) => return Ok(Err(error)),
    };
    record.positions = positions(connection, record.checkpoint.committed.iteration)?;
    record.drawn_to = drawn_to(connection)?;
    record.banned = banned(connection)?;
    record.history = match iteration_metrics(connection, RECENT)? {
        Ok(history) => history,
        Err(error) => return Ok(Err(error)),
    };
    if let Some(text) = totals(connection)? {
        record.totals = parse!("totals", &text);
    }
    let last_event = "SELECT coalesce(max(sequence), 0) FROM events";
    record.event_sequence = connection.query_row(last_event, [], |row| unsigned(row, 0))?;
    record.open = match open_iterations(connection)? {
        Ok(open) => open,
        Err(error) => return Ok(Err(error)),
    };
    Ok(Ok(record))
}

pub(super) fn newest_commit(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let query = "SELECT committed FROM versions JOIN iterations ON id = iteration_id \
                 WHERE status = 'committed' ORDER BY iteration DESC LIMIT 1";
    connection.query_row(query, [], |row| row.get(0)).optional()
}

/// What iterations after this one left behind, in order.
fn committed_after(connection: &Connection, after: Iteration) -> rusqlite::Result<Vec<String>> {
    let query = "SELECT committed FROM versions JOIN iterations ON id = iteration_id \
                 WHERE status = 'committed' AND iteration > ?1 ORDER BY iteration";
    let mut statement = connection.prepare(query)?;
    let rows = statement.query_map([after.0], |row| row.get(0))?;
    rows.collect()
}

fn last_checkpoint(connection: &Connection, until: Iteration) -> rusqlite::Result<Option<String>> {
    // By id, not by iteration: after a rewind the same iteration is checkpointed again.
    let query = "SELECT checkpoint FROM checkpoints WHERE iteration <= ?1 ORDER BY id DESC LIMIT 1";
    connection
        .query_row(query, [until.0], |row| row.get(0))
        .optional()
}

pub(super) fn totals(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let query = "SELECT value FROM meta WHERE key = 'totals'";
    connection.query_row(query, [], |row| row.get(0)).optional()
}

pub(super) fn standing(connection: &Connection) -> Loaded<Standing> {
    let query = "SELECT value FROM meta WHERE key = 'standing'";
    let text: Option<String> = connection
        .query_row(query, [], |row| row.get(0))
        .optional()?;
    Ok(text.map_or(Ok(Standing::Running), |text| parsed("standing", &text)))
}

/// Where iterations after the checkpoint begin.
fn positions(connection: &Connection, after: Iteration) -> rusqlite::Result<Vec<(Iteration, u64)>> {
    let query = "SELECT iteration + 1, next_position FROM iterations \
                 WHERE status = 'committed' AND iteration >= ?1 \
                 UNION ALL SELECT iteration, position FROM iterations \
                 WHERE status IN ('open', 'committed') AND iteration > ?1";
    let mut statement = connection.prepare(query)?;
    let rows = statement.query_map([after.0], |row| {
        Ok((Iteration(row.get(0)?), unsigned(row, 1)?))
    })?;
    rows.collect()
}

/// Where drawing went on after the last commit.
fn drawn_to(connection: &Connection) -> rusqlite::Result<u64> {
    let query = "SELECT next_position FROM iterations WHERE status = 'committed' ORDER BY iteration DESC LIMIT 1";
    let position = connection.query_row(query, [], |row| unsigned(row, 0));
    position.optional().map(|position| position.unwrap_or(0))
}

fn banned(connection: &Connection) -> rusqlite::Result<Vec<(u32, Iteration)>> {
    let mut statement =
        connection.prepare("SELECT dataset_row, iteration FROM bans ORDER BY iteration")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, Iteration(row.get(1)?))))?;
    rows.collect()
}

fn open_iterations(connection: &Connection) -> Loaded<Vec<OpenRecord>> {
    let query = "SELECT id, iteration FROM iterations WHERE status = 'open' ORDER BY iteration";
    let ids: Vec<(i64, u32)> = connection
        .prepare(query)?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut open = Vec::new();
    for (id, iteration) in ids {
        let iteration = Iteration(iteration);
        match groups(connection, id, iteration)? {
            Ok(groups) => open.push(OpenRecord { iteration, groups }),
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(open))
}

/// A group's columns as they are.
struct Row {
    drawn: DrawnGroup,
    policy: Option<String>,
    sampled: Option<String>,
    scoring_s: Option<f64>,
    dropped: Option<String>,
    is_scored: bool,
}

fn groups(connection: &Connection, id: i64, iteration: Iteration) -> Loaded<Vec<GroupRecord>> {
    let query = "SELECT idx, dataset_row, round, policy, sampled, scoring_s, dropped, scored_by IS NOT NULL, \
                 coalesce(position, 0) FROM groups WHERE iteration_id = ?1 ORDER BY idx";
    let mut statement = connection.prepare(query)?;
    let rows = statement.query_map([id], |row| {
        let group = GroupId {
            iteration,
            index: row.get(0)?,
        };
        Ok(Row {
            drawn: DrawnGroup {
                group,
                row: row.get(1)?,
                round: row.get(2)?,
                position: unsigned(row, 8)?,
            },
            policy: row.get(3)?,
            sampled: row.get(4)?,
            scoring_s: row.get(5)?,
            dropped: row.get(6)?,
            is_scored: row.get(7)?,
        })
    })?;
    let mut groups = Vec::new();
    for row in rows {
        match group(connection, id, row?)? {
            Ok(group) => groups.push(group),
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(groups))
}

fn group(connection: &Connection, id: i64, row: Row) -> Loaded<GroupRecord> {
    let Row {
        drawn,
        policy,
        sampled,
        scoring_s,
        dropped,
        is_scored,
    } = row;
    let (Some(policy), Some(sampled)) = (policy, sampled) else {
        return Ok(Ok(GroupRecord {
            drawn,
            sampled: None,
            scored: None,
            dropped,
        }));
    };
    let policy: Policy = parse!("groups.policy", &policy);
    let sampled: RolloutResult = parse!("groups.sampled", &sampled);
    let mut scored = None;
    if is_scored {
        let scores = match group_scores(connection, id, drawn.group.index)? {
            Ok(scores) => scores,
            Err(error) => return Ok(Err(error)),
        };
        let edits = sampled.edits_png.iter().map(|edit| edit.hash).collect();
        let scoring_s = scoring_s.unwrap_or(0.0);
        let scores = scores.into_iter().map(|row| row.score).collect();
        scored = Some(ScoreResult {
            group: drawn.group,
            edits,
            scores,
            // Not recorded with the scores: it is said once, by an event.
            unscored: Vec::new(),
            scoring_s,
        });
    }
    Ok(Ok(GroupRecord {
        drawn,
        sampled: Some((policy, sampled)),
        scored,
        dropped,
    }))
}
