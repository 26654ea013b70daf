//! Tables and their version.

use rusqlite::{Connection, OptionalExtension};

use super::StoreError;

/// What each version adds to the one before; a new file goes through all of them, so that an old
/// one becomes the same.
const MIGRATIONS: [&str; 2] = [FIRST, SECOND];
const VERSION: i64 = MIGRATIONS.len() as i64;

pub(super) const FIRST: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
-- One row per attempt at an iteration: a rewound one stays beside its replay.
CREATE TABLE iterations (
    id INTEGER PRIMARY KEY,
    iteration INTEGER NOT NULL,
    status TEXT NOT NULL,           -- open, committed, rewound
    position INTEGER NOT NULL,      -- in the prompt order, where it began
    next_position INTEGER,          -- where the next one begins
    metrics TEXT                    -- JSON, once committed
);
CREATE INDEX iterations_by_number ON iterations (iteration, status);
CREATE TABLE groups (
    iteration_id INTEGER NOT NULL REFERENCES iterations (id),
    idx INTEGER NOT NULL,
    dataset_row INTEGER NOT NULL,
    round INTEGER NOT NULL,
    policy TEXT,                    -- JSON, once sampled
    sampled TEXT,                   -- JSON, once sampled
    sampled_by TEXT,
    scored_by TEXT,
    scoring_s REAL,
    reward_mean REAL,
    kept INTEGER,                   -- 0 or 1, once the iteration is committed
    permutation TEXT,               -- JSON, in control runs
    dropped TEXT,                   -- the reason
    PRIMARY KEY (iteration_id, idx)
) WITHOUT ROWID;
CREATE TABLE scores (
    iteration_id INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    sample INTEGER NOT NULL,
    reward REAL NOT NULL,
    advantage REAL,                 -- of kept groups, once the iteration is committed
    terms TEXT NOT NULL,            -- JSON
    PRIMARY KEY (iteration_id, idx, sample)
) WITHOUT ROWID;
-- What each committed iteration left behind.
CREATE TABLE versions (
    iteration_id INTEGER PRIMARY KEY REFERENCES iterations (id),
    committed TEXT NOT NULL,        -- JSON
    version TEXT,                   -- hash of the old policy's adapter
    state TEXT                      -- hash of the learner's state
);
CREATE TABLE checkpoints (
    id INTEGER PRIMARY KEY,
    iteration INTEGER NOT NULL,
    ema_adapter TEXT,
    checkpoint TEXT NOT NULL        -- JSON
);
CREATE TABLE bans (dataset_row INTEGER PRIMARY KEY, iteration INTEGER NOT NULL);
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY,
    time_unix_ms INTEGER NOT NULL,
    iteration INTEGER NOT NULL,
    kind TEXT NOT NULL,
    message TEXT NOT NULL
);
";

const SECOND: &str = "
-- Where in the prompt order drawing went on after the group.
ALTER TABLE groups ADD COLUMN position INTEGER;
-- Whether the group has scores and was left out because its samples are too old.
ALTER TABLE groups ADD COLUMN stale INTEGER NOT NULL DEFAULT 0;
-- What became of every group of every attempt.
CREATE VIEW fates AS
SELECT
    iterations.id AS iteration_id, iterations.iteration, iterations.status, idx, dataset_row, round,
    CASE
        WHEN dropped IS NOT NULL THEN 'dropped'
        WHEN kept = 1 THEN 'trained'
        WHEN stale = 1 THEN 'stale'
        WHEN kept = 0 THEN 'filtered'
        WHEN scored_by IS NOT NULL THEN 'scored'
        WHEN sampled_by IS NOT NULL THEN 'sampled'
        ELSE 'drawn'
    END AS fate,
    dropped AS reason, reward_mean, sampled_by, scored_by,
    policy ->> '$.iteration' AS policy_iteration
FROM groups JOIN iterations ON iterations.id = groups.iteration_id;
";

/// Sets up a connection, brings the tables up to this program's version, and counts this start.
pub(super) fn prepare(connection: &mut Connection) -> rusqlite::Result<Result<u32, StoreError>> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A commit is durable when it returns, whatever happens to the machine.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    if let Err(error) = check_version(connection)? {
        return Ok(Err(error));
    }
    let found = version(connection)?;
    // One transaction: a start that dies in it has neither changed the tables nor used up a number.
    let transaction = connection.transaction()?;
    for migration in &MIGRATIONS[found as usize..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    let incarnation = next_incarnation(&transaction)?;
    transaction.commit()?;
    Ok(Ok(incarnation))
}

/// Which version the file has; 0 is an empty one.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Whether an older program's record is to be brought up to this one's.
pub(super) fn is_old(version: i64) -> bool {
    (1..VERSION).contains(&version)
}

/// Refuses what a newer program wrote.
pub(super) fn check_version(connection: &Connection) -> rusqlite::Result<Result<(), StoreError>> {
    let found = version(connection)?;
    let known = (0..=VERSION).contains(&found);
    Ok(known.then_some(()).ok_or(StoreError::SchemaVersion {
        found,
        newest: VERSION,
    }))
}

fn next_incarnation(connection: &Connection) -> rusqlite::Result<u32> {
    let query = "SELECT value FROM meta WHERE key = 'incarnation'";
    let last: Option<String> = connection
        .query_row(query, [], |row| row.get(0))
        .optional()?;
    let next = last.and_then(|last| last.parse::<u32>().ok()).unwrap_or(0) + 1;
    let update = "INSERT OR REPLACE INTO meta (key, value) VALUES ('incarnation', ?1)";
    connection.execute(update, [next.to_string()])?;
    Ok(next)
}
