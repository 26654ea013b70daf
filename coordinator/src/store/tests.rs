//! What a store refuses, and what it tells readers. (That it gives back what was written is
//! tested with the simulated runs.)

use retouch_proto::RunConfig;
use retouch_proto::config::{Preset, preset};
use retouch_proto::status::{Event, EventKind};

use super::{FILE_NAME, Reader, Store, StoreError};
use crate::machine::record::Entry;
use retouch_proto::Iteration;

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
        config.model.device = "cuda:0".into();
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
fn another_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(folder.path().join(FILE_NAME)).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Store::open(folder.path(), &preset(Preset::Tiny), "rows")
        .map(drop)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the record has schema version 99, this program reads 1"
    );
}

#[test]
fn a_file_that_is_no_database_is_told_by_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join(FILE_NAME),
        "not a database, but long enough for a header".repeat(9),
    )
    .unwrap();
    let error = Store::open(folder.path(), &preset(Preset::Tiny), "rows")
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(FILE_NAME) && error.contains("not a database"),
        "{error}"
    );
}

#[test]
fn a_batch_is_written_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(folder.path(), &preset(Preset::Tiny), "rows").unwrap();
    let event = |sequence| {
        Entry::Event(Event {
            sequence,
            time_unix_ms: 1,
            iteration: Iteration(1),
            kind: EventKind::Control,
            message: "m".into(),
        })
    };
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
