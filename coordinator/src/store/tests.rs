//! What a store refuses, and what it tells readers. (That it gives back what was written is
//! tested with the simulated runs.)

mod mending;

use std::path::Path;

use retouch_proto::RunConfig;
use retouch_proto::config::{DeviceName, Preset, preset};
use retouch_proto::status::{Event, EventKind};

use super::{Reader, Store, StoreError};
use crate::machine::record::{Checkpoint, Entry};
use crate::machine::simulator::tests::recorded_run;
use retouch_proto::{Iteration, RunFolder};
use rusqlite::Connection;

fn event(sequence: u64) -> Entry {
    Entry::Event(Event {
        sequence,
        time_unix_ms: 1,
        iteration: Iteration(1),
        kind: EventKind::Control,
        message: "m".into(),
    })
}

fn refused(change: impl FnOnce(&mut RunConfig), rows: &str) -> Result<(), StoreError> {
    let folder = tempfile::tempdir().unwrap();
    let mut config = preset(Preset::Tiny);
    Store::open(folder.path(), &config, "rows").unwrap();
    change(&mut config);
    Store::open(folder.path(), &config, rows).map(drop)
}

#[test]
fn a_run_goes_on_with_more_iterations_and_another_cluster() {
    let change = |config: &mut RunConfig| {
        config.iterations += 10;
        config.cluster.rollout_workers = 7;
        config.evaluation.pairs = 1;
        config.learner.ranks = 1;
        config.model.device = DeviceName::Cuda(0).into();
        config.run_dir = "elsewhere".into();
    };
    refused(change, "rows").unwrap();
}

#[test]
fn what_would_make_other_samples_is_refused_with_all_differences() {
    let change = |config: &mut RunConfig| {
        config.seed = 8;
        config.rollout.group_size = 3;
    };
    let error = refused(change, "rows").unwrap_err().to_string();
    assert!(
        error.contains("rollout.group_size: 12 -> 3, seed: 0 -> 8"),
        "{error}"
    );
}

#[test]
fn another_dataset_is_refused() {
    let error = refused(|_| (), "other rows").unwrap_err().to_string();
    assert!(error.contains("other rows"), "{error}");
}

#[test]
fn a_newer_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let connection = Connection::open(RunFolder::new(folder.path()).record()).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Store::open(folder.path(), &preset(Preset::Tiny), "rows")
        .map(drop)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the record has schema version 99, this program knows versions up to 2; take the program that \
         wrote it, or a newer one"
    );
}

#[test]
fn a_file_that_is_no_database_is_told_by_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        RunFolder::new(folder.path()).record(),
        "not a database, but long enough for a header".repeat(9),
    )
    .unwrap();
    let error = Store::open(folder.path(), &preset(Preset::Tiny), "rows")
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("run.db") && error.contains("not a database"),
        "{error}"
    );
}

#[test]
fn a_batch_is_written_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(folder.path(), &preset(Preset::Tiny), "rows").unwrap();
    store.write(&[event(1)]).unwrap();
    // The second event repeats a number, which fails after the first was inserted.
    store.write(&[event(2), event(1)]).unwrap_err();
    let reader = Reader::open(folder.path()).unwrap();
    let sequences: Vec<u64> = reader
        .last_events(10)
        .unwrap()
        .iter()
        .map(|event| event.sequence)
        .collect();
    assert_eq!(sequences, [1]);
}

/// A record as the first version of the program left it.
fn first_schema(folder: &Path) -> Connection {
    let connection = Connection::open(RunFolder::new(folder).record()).unwrap();
    connection.execute_batch(super::schema::FIRST).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    let rows = "
        INSERT INTO meta VALUES ('incarnation', '4');
        INSERT INTO iterations VALUES (1, 1, 'open', 0, NULL, NULL);
        INSERT INTO groups (iteration_id, idx, dataset_row, round) VALUES (1, 0, 7, 0);
    ";
    connection.execute_batch(rows).unwrap();
    connection
}

#[test]
fn an_old_record_is_brought_up_to_date_and_kept_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    drop(first_schema(folder.path()));
    Reader::open(folder.path()).expect("old records can be read as they are");
    let (store, record) = Store::open(folder.path(), &preset(Preset::Tiny), "rows").unwrap();
    assert_eq!(record.incarnation, 5);
    assert_eq!(record.open[0].groups[0].drawn.row, 7);
    drop(store);
    let version = |name: &str| -> i64 {
        let connection = Connection::open(folder.path().join(name)).unwrap();
        let query = "SELECT count(*) FROM groups";
        let groups: i64 = connection.query_row(query, [], |row| row.get(0)).unwrap();
        assert_eq!(groups, 1, "{name}");
        super::schema::version(&connection).unwrap()
    };
    assert_eq!((version("run.db"), version("run.db.schema1")), (2, 1));
}

#[test]
fn a_snapshot_is_taken_while_the_record_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(folder.path(), &preset(Preset::Tiny), "rows").unwrap();
    store
        .write(&[event(1), Entry::Checkpointed(Checkpoint::START)])
        .unwrap();
    (2..100).for_each(|sequence| store.write(&[event(sequence)]).unwrap());
    drop(store);
    let snapshot = Reader::open(&RunFolder::new(folder.path()).checkpoint(Iteration(0))).unwrap();
    assert!(!snapshot.last_events(1).unwrap().is_empty());
}

/// The folder of a run on which much went wrong.
fn recorded() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (config, entries) = recorded_run();
    let (mut store, _) = Store::open(folder.path(), &config, "rows").unwrap();
    store.write(&entries).unwrap();
    folder
}

#[test]
fn a_checkpoint_that_was_deleted_is_none() {
    let folder = recorded();
    let reader = Reader::open(folder.path()).unwrap();
    let iteration = reader.checkpoint().unwrap().committed.iteration;
    let checkpoint = RunFolder::new(folder.path()).checkpoint(iteration);
    let is_checkpointed = || {
        let versions = reader.versions().unwrap().into_iter();
        let mut versions = versions.filter(|version| version.iteration == iteration);
        versions.next().unwrap().checkpointed
    };
    assert!(checkpoint.is_dir() && is_checkpointed());
    std::fs::remove_dir_all(checkpoint).unwrap();
    assert!(!is_checkpointed());
}

/// The documented questions have answers in the record of a run on which much went wrong.
#[test]
fn the_documented_queries_have_answers() {
    let folder = recorded();
    let connection = Connection::open(RunFolder::new(folder.path()).record()).unwrap();
    let document = include_str!("../../RECORD.md");
    let queries: Vec<&str> = document.split("```sql").skip(1).collect();
    assert!(queries.len() >= 9, "{} queries", queries.len());
    for query in queries {
        let query = query.split("```").next().unwrap();
        let mut statement = connection.prepare(query).expect(query);
        let mut rows = statement.query([]).expect(query);
        assert!(rows.next().expect(query).is_some(), "no answer to {query}");
    }
}
