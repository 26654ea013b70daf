//! From entries to rows.

use rusqlite::{Connection, params};
use serde::Serialize;

use crate::machine::record::{
    Checkpoint, CommittedEntry, DrawnGroup, Entry, KeptGroup, SampledEntry, Standing,
};
use retouch_proto::status::Event;
use retouch_proto::task::ScoreResult;
use retouch_proto::{GroupId, Iteration};

/// The row of the present attempt at an iteration.
const OPEN_ID: &str = "(SELECT id FROM iterations WHERE iteration = ?1 AND status = 'open')";

/// Writes one entry within a transaction.
pub(super) fn entry(connection: &Connection, entry: &Entry) -> rusqlite::Result<()> {
    match entry {
        Entry::Opened {
            iteration,
            position,
        } => opened(connection, *iteration, *position),
        Entry::Drawn(group) => drawn(connection, group),
        Entry::Sampled(entry) => sampled(connection, entry),
        Entry::Scored { worker, result } => scored(connection, worker.as_str(), result),
        Entry::Dropped { group, reason } => dropped(connection, *group, reason),
        Entry::Committed(entry) => committed(connection, entry),
        Entry::Checkpointed(checkpoint) => checkpointed(connection, checkpoint),
        Entry::Rewound { to, .. } => rewound(connection, *to),
        Entry::Stands(standing) => stands(connection, standing),
        Entry::Event(told) => event(connection, told),
    }
}

fn drawn(connection: &Connection, drawn: &DrawnGroup) -> rusqlite::Result<()> {
    let insert = format!(
        "INSERT INTO groups (iteration_id, idx, dataset_row, round, position) \
         VALUES ({OPEN_ID}, ?2, ?3, ?4, ?5)"
    );
    let GroupId { iteration, index } = drawn.group;
    let position = drawn.position.cast_signed();
    let values = params![iteration.0, index, drawn.row, drawn.round, position];
    connection
        .prepare_cached(&insert)?
        .execute(values)
        .map(drop)
}

fn sampled(connection: &Connection, entry: &SampledEntry) -> rusqlite::Result<()> {
    let SampledEntry {
        worker,
        policy,
        result,
    } = entry;
    let update = format!(
        "UPDATE groups SET policy = ?3, sampled = ?4, sampled_by = ?5, scored_by = NULL, \
         dropped = NULL, reward_mean = NULL WHERE iteration_id = {OPEN_ID} AND idx = ?2"
    );
    let GroupId { iteration, index } = result.group;
    let values = params![
        iteration.0,
        index,
        json(policy),
        json(result),
        worker.as_str()
    ];
    connection.prepare_cached(&update)?.execute(values)?;
    // Scores are of the samples that they were given for (A5): with other samples they are no scores at all.
    let delete = format!("DELETE FROM scores WHERE iteration_id = {OPEN_ID} AND idx = ?2");
    connection
        .prepare_cached(&delete)?
        .execute(params![iteration.0, index])
        .map(drop)
}

fn dropped(connection: &Connection, group: GroupId, reason: &str) -> rusqlite::Result<()> {
    let update =
        format!("UPDATE groups SET dropped = ?3 WHERE iteration_id = {OPEN_ID} AND idx = ?2");
    let values = params![group.iteration.0, group.index, reason];
    connection
        .prepare_cached(&update)?
        .execute(values)
        .map(drop)
}

fn checkpointed(connection: &Connection, checkpoint: &Checkpoint) -> rusqlite::Result<()> {
    let insert = "INSERT INTO checkpoints (iteration, ema_adapter, checkpoint) VALUES (?1, ?2, ?3)";
    let adapter = checkpoint.ema_adapter.map(|hash| hash.to_string());
    let values = params![checkpoint.committed.iteration.0, adapter, json(checkpoint)];
    connection.execute(insert, values).map(drop)
}

fn stands(connection: &Connection, standing: &Standing) -> rusqlite::Result<()> {
    let insert = "INSERT OR REPLACE INTO meta (key, value) VALUES ('standing', ?1)";
    connection.execute(insert, [json(standing)]).map(drop)
}

fn rewound(connection: &Connection, to: Iteration) -> rusqlite::Result<()> {
    // Drawing goes on where the first of the iterations began that are taken back.
    let update = "UPDATE iterations SET next_position = began.position \
         FROM (SELECT position FROM iterations WHERE iteration = ?1 + 1 AND status IN ('open', 'committed')) AS began \
         WHERE iteration = ?1 AND status = 'committed'";
    connection.execute(update, [to.0])?;
    connection.execute(
        "UPDATE iterations SET status = 'rewound' WHERE iteration > ?1",
        [to.0],
    )?;
    connection
        .execute("DELETE FROM bans WHERE iteration > ?1", [to.0])
        .map(drop)
}

fn event(connection: &Connection, event: &Event) -> rusqlite::Result<()> {
    let insert = "INSERT INTO events (sequence, time_unix_ms, iteration, kind, message) \
                  VALUES (?1, ?2, ?3, ?4, ?5)";
    let (sequence, time) = (
        event.sequence.cast_signed(),
        event.time_unix_ms.cast_signed(),
    );
    let values = params![
        sequence,
        time,
        event.iteration.0,
        event.kind.as_str(),
        event.message
    ];
    connection.prepare_cached(insert)?.execute(values).map(drop)
}

fn opened(connection: &Connection, iteration: Iteration, position: u64) -> rusqlite::Result<()> {
    let void = "UPDATE iterations SET status = 'rewound' WHERE iteration = ?1 AND status = 'open'";
    connection.execute(void, [iteration.0])?;
    let insert = "INSERT INTO iterations (iteration, status, position) VALUES (?1, 'open', ?2)";
    connection
        .execute(insert, params![iteration.0, position.cast_signed()])
        .map(drop)
}

fn scored(connection: &Connection, worker: &str, result: &ScoreResult) -> rusqlite::Result<()> {
    let GroupId { iteration, index } = result.group;
    let update = format!(
        "UPDATE groups SET scored_by = ?3, scoring_s = ?4, reward_mean = ?5, dropped = NULL \
         WHERE iteration_id = {OPEN_ID} AND idx = ?2"
    );
    let mean =
        result.scores.iter().map(|score| score.reward).sum::<f64>() / result.scores.len() as f64;
    let values = params![iteration.0, index, worker, result.scoring_s, mean];
    connection.prepare_cached(&update)?.execute(values)?;
    let insert = format!(
        "INSERT OR REPLACE INTO scores (iteration_id, idx, sample, reward, terms) \
         VALUES ({OPEN_ID}, ?2, ?3, ?4, ?5)"
    );
    let mut insert = connection.prepare_cached(&insert)?;
    for (sample, score) in result.scores.iter().enumerate() {
        insert.execute(params![
            iteration.0,
            index,
            sample as i64,
            score.reward,
            json(&score.terms)
        ])?;
    }
    Ok(())
}

fn committed(connection: &Connection, entry: &CommittedEntry) -> rusqlite::Result<()> {
    let iteration = entry.committed.iteration.0;
    let insert = format!(
        "INSERT INTO versions (iteration_id, committed, version, state) VALUES ({OPEN_ID}, ?2, ?3, ?4)"
    );
    let version = entry.committed.policy.hash().map(|hash| hash.to_string());
    let state = entry.committed.state.map(|state| state.hash.to_string());
    connection.execute(
        &insert,
        params![iteration, json(&entry.committed), version, state],
    )?;
    // Only now, since a seal may be undone until the commit; those that are kept follow.
    let update = format!("UPDATE groups SET kept = 0 WHERE iteration_id = {OPEN_ID}");
    connection.execute(&update, [iteration])?;
    entry
        .kept
        .iter()
        .try_for_each(|kept| kept_group(connection, kept))?;
    for row in &entry.banned {
        let insert = "INSERT OR IGNORE INTO bans (dataset_row, iteration) VALUES (?1, ?2)";
        connection.execute(insert, params![row, iteration])?;
    }
    let totals = "INSERT OR REPLACE INTO meta (key, value) VALUES ('totals', ?1)";
    connection.execute(totals, [json(&entry.totals)])?;
    let update = "UPDATE iterations SET status = 'committed', metrics = ?2, next_position = ?3 \
                  WHERE iteration = ?1 AND status = 'open'";
    connection
        .execute(
            update,
            params![
                iteration,
                json(&entry.metrics),
                entry.next_position.cast_signed()
            ],
        )
        .map(drop)
}

fn kept_group(connection: &Connection, kept: &KeptGroup) -> rusqlite::Result<()> {
    let GroupId { iteration, index } = kept.group;
    let update = format!(
        "UPDATE groups SET kept = 1, permutation = ?3 WHERE iteration_id = {OPEN_ID} AND idx = ?2"
    );
    let permutation = kept.permutation.as_ref().map(json);
    connection
        .prepare_cached(&update)?
        .execute(params![iteration.0, index, permutation])?;
    let update = format!(
        "UPDATE scores SET advantage = ?4 WHERE iteration_id = {OPEN_ID} AND idx = ?2 AND sample = ?3"
    );
    let mut update = connection.prepare_cached(&update)?;
    for (sample, advantage) in kept.advantages.iter().enumerate() {
        update.execute(params![iteration.0, index, sample as i64, advantage])?;
    }
    Ok(())
}

fn json<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("domain types have string keys")
}
