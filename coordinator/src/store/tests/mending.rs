//! Damage from outside: whatever is wrong, a run continues from the newest whole thing, or says why it can't.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use retouch_proto::Iteration;
use retouch_proto::run_folder::CheckpointFile;
use retouch_proto::status::EventKind;

use super::super::fixture::{MadeUpRun, tree};
use super::super::snapshot::thin_out;
use super::super::{Reader, Store, StoreError};
use crate::machine::record::Record;

const ITERATIONS: u32 = 3;

fn told(store: &mut Store) -> String {
    let last = store.last_events(1).unwrap().pop().unwrap();
    assert_eq!(last.kind, EventKind::Mended);
    last.message
}

fn reached(record: &Record) -> (u32, u32) {
    let (committed, checkpoint) = (record.committed, record.checkpoint.committed);
    (committed.iteration.0, checkpoint.iteration.0)
}

/// A folder as a copy that leaves the log out has it.
fn copied_without_log(from: &Path) -> MadeUpRun {
    let copy = MadeUpRun::new();
    for (name, content) in tree(from) {
        if !name.starts_with("run.db-") {
            let to = copy.path().join(name);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::write(to, content).unwrap();
        }
    }
    copy
}

#[test]
fn a_record_that_was_copied_without_its_log_is_mended() {
    let run = MadeUpRun::new();
    let mut store = run.store();
    (1..=ITERATIONS).for_each(|iteration| run.checkpoint(&mut store, iteration));
    let log = fs::metadata(run.path().join("run.db-wal")).unwrap().len();
    assert!(log > 0, "everything is in the log");
    let copy = copied_without_log(run.path());
    let (mut store, record) = copy.open().unwrap();
    assert_eq!(reached(&record), (ITERATIONS, ITERATIONS));
    let told = told(&mut store);
    let kept = copy.path().join("run.db.damaged");
    assert!(
        kept.exists() && told.contains(&kept.display().to_string()),
        "{told}"
    );
    assert!(told.contains("copy in checkpoint 3"), "{told}");
    drop(store);
    let (mut store, record) = copy.open().unwrap();
    assert_eq!(reached(&record), (ITERATIONS, ITERATIONS));
    let mended = store.last_events(9).unwrap();
    let mended = mended
        .iter()
        .filter(|event| event.kind == EventKind::Mended);
    assert_eq!(mended.count(), 1, "once");
}

#[test]
fn whatever_befalls_a_record_it_is_mended() {
    let old = MadeUpRun::with_checkpoints(1);
    let old = fs::read(old.folder().record()).unwrap();
    type Damage<'a> = &'a dyn Fn(&Path);
    let damages: [(&str, Damage<'_>); 7] = [
        ("is missing", &|record| fs::remove_file(record).unwrap()),
        ("is empty", &|record| fs::write(record, "").unwrap()),
        ("is corrupt", &|record| {
            fs::write(record, "x".repeat(9_999)).unwrap()
        }),
        ("is corrupt", &|record| {
            let whole = fs::read(record).unwrap();
            fs::write(record, &whole[..whole.len() / 2]).unwrap();
        }),
        ("is corrupt", &|record| {
            let mut flipped = fs::read(record).unwrap();
            flipped[5_000..].fill(0x5a);
            fs::write(record, flipped).unwrap();
        }),
        ("ends earlier", &|record| fs::write(record, &old).unwrap()),
        ("is missing", &|record| {
            fs::remove_file(record).unwrap();
            symlink("/nowhere/run.db", record).unwrap();
        }),
    ];
    for (index, (problem, damage)) in damages.into_iter().enumerate() {
        let run = MadeUpRun::with_checkpoints(ITERATIONS);
        damage(&run.folder().record());
        // What a log of the damaged file would do to another.
        fs::write(run.path().join("run.db-wal"), "a stale log").unwrap();
        let (mut store, record) = run.open().unwrap();
        assert_eq!(reached(&record), (ITERATIONS, ITERATIONS), "{index}");
        let told = told(&mut store);
        assert!(
            told.starts_with(&format!("run.db {problem}")),
            "{index}: {told}"
        );
    }
}

#[test]
fn an_older_copy_is_taken_if_the_newest_is_torn() {
    let run = MadeUpRun::with_checkpoints(ITERATIONS);
    fs::remove_file(run.folder().record()).unwrap();
    fs::write(run.path().join("checkpoints/3/run.db"), "torn").unwrap();
    let (_, record) = run.open().unwrap();
    assert_eq!(reached(&record), (2, 2));
}

#[test]
fn no_run_begins_anew_over_checkpoints() {
    for content in [None, Some(""), Some("no database")] {
        let run = MadeUpRun::with_checkpoints(ITERATIONS);
        for iteration in 1..=ITERATIONS {
            let copy = CheckpointFile::Record.name(Iteration(iteration));
            fs::remove_file(run.path().join(copy)).unwrap();
        }
        fs::remove_file(run.folder().record()).unwrap();
        if let Some(content) = content {
            fs::write(run.folder().record(), content).unwrap();
        }
        let before = tree(run.path());
        let error = run.open().map(drop).unwrap_err();
        assert!(matches!(error, StoreError::Lost { .. }), "{error}");
        let text = error.to_string();
        for part in [
            "run.db is ",
            "checkpoints/3/run.db is missing",
            "run.db-wal",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(tree(run.path()), before);
    }
}

#[test]
fn a_learner_that_was_faster_than_the_record_is_no_damage() {
    let run = MadeUpRun::new();
    drop(run.store());
    let written = run.folder().checkpoint(Iteration(1));
    fs::create_dir_all(&written).unwrap();
    fs::write(written.join("state.safetensors"), "not recorded").unwrap();
    let (_, record) = run.open().unwrap();
    assert_eq!(reached(&record), (0, 0));
}

#[test]
fn of_damaged_checkpoints_the_one_before_is_taken() {
    type Damage<'a> = &'a dyn Fn(&Path);
    let state = |folder: &Path| folder.join("state.safetensors");
    let damages: [(&str, Damage<'_>); 7] = [
        ("state.safetensors is damaged", &|folder| {
            fs::write(state(folder), "sta").unwrap()
        }),
        ("version.safetensors is damaged", &|folder| {
            fs::write(folder.join("version.safetensors"), "version 4").unwrap();
        }),
        ("state.safetensors is missing", &|folder| {
            fs::remove_file(state(folder)).unwrap()
        }),
        ("state.safetensors is missing", &|folder| {
            fs::remove_dir_all(folder).unwrap()
        }),
        (
            "state.safetensors is a link to /nowhere, which is not there",
            &|folder| {
                fs::remove_file(state(folder)).unwrap();
                symlink("/nowhere", state(folder)).unwrap();
            },
        ),
        ("state.safetensors is missing", &|folder| {
            fs::remove_dir_all(folder).unwrap();
            symlink("/nowhere", folder).unwrap();
        }),
        ("state.safetensors can't be read", &|folder| {
            fs::remove_file(state(folder)).unwrap();
            fs::create_dir(state(folder)).unwrap();
        }),
    ];
    for (problem, damage) in damages {
        let run = MadeUpRun::with_checkpoints(ITERATIONS);
        let folder = run.folder().checkpoint(Iteration(ITERATIONS));
        damage(&folder);
        let (mut store, record) = run.open().unwrap();
        // What was committed counts, as long as a learner holds it; everything since the checkpoint is known.
        assert_eq!(reached(&record), (3, 2), "{problem}");
        assert_eq!(
            record.positions,
            [(Iteration(3), 20), (Iteration(4), 30), (Iteration(3), 20)]
        );
        assert_eq!(record.banned.len(), 3);
        let told = told(&mut store);
        let expected = format!("checkpoints/3/{problem}");
        assert!(told.starts_with(&expected), "{told}, not {expected}");
        assert!(told.ends_with("the last whole checkpoint is 2"), "{told}");
        assert!(
            fs::symlink_metadata(&folder).is_err(),
            "it can be written anew"
        );
        // The next start finds nothing to tell.
        drop(store);
        let (mut store, record) = run.open().unwrap();
        assert_eq!(reached(&record), (3, 2), "{problem}");
        assert_eq!(store.last_events(9).unwrap().len(), 4);
    }
}

#[test]
fn a_link_to_what_is_whole_is_whole() {
    let run = MadeUpRun::with_checkpoints(ITERATIONS);
    let folder = run.folder().checkpoint(Iteration(ITERATIONS));
    let elsewhere = run.path().join("elsewhere");
    fs::rename(&folder, &elsewhere).unwrap();
    symlink(&elsewhere, &folder).unwrap();
    assert_eq!(reached(&run.open().unwrap().1), (3, 3));
}

#[test]
fn without_a_whole_checkpoint_a_run_is_refused_and_stays_as_it_is() {
    let mut run = MadeUpRun::with_checkpoints(ITERATIONS);
    for iteration in 1..=ITERATIONS {
        let state = CheckpointFile::State.name(Iteration(iteration));
        fs::write(run.path().join(state), "torn").unwrap();
    }
    for _ in 0..2 {
        let error = run.open().map(drop).unwrap_err();
        let StoreError::NoWholeCheckpoint { problems } = &error else {
            panic!("{error}");
        };
        assert_eq!(problems.len(), 3, "{error}");
    }
    assert!(run.folder().checkpoint(Iteration(3)).exists());
    run.config.iterations = ITERATIONS;
    assert_eq!(
        reached(&run.open().unwrap().1),
        (3, 3),
        "a run that is over needs none"
    );
}

#[test]
fn the_newest_two_checkpoints_have_a_copy_of_the_record() {
    let run = MadeUpRun::with_checkpoints(5);
    thin_out(&run.folder(), Iteration(5)).unwrap();
    let copies = (1..=5).filter(|iteration| {
        let copy = CheckpointFile::Record.name(Iteration(*iteration));
        run.path().join(copy).exists()
    });
    assert_eq!(copies.collect::<Vec<_>>(), [4, 5]);
}

#[test]
fn a_record_that_is_not_in_use_is_one_file() {
    let run = MadeUpRun::with_checkpoints(1);
    super::super::fold(&run.folder()).unwrap();
    let before = tree(run.path());
    for folder in [run.path(), &run.folder().checkpoint(Iteration(1))] {
        let reader = Reader::open(folder).unwrap();
        assert_eq!(reader.iterations().unwrap().len(), 1);
    }
    assert_eq!(tree(run.path()), before, "readers leave nothing");
    let names: Vec<&String> = before
        .keys()
        .filter(|name| name.contains("run.db"))
        .collect();
    assert_eq!(names, ["checkpoints/1/run.db", "run.db"]);
}
