//! A new run from an old one.

use std::fs;

use retouch_proto::ContentHash;

use super::*;
use crate::store::fixture::{MadeUpRun, tree};
use crate::store::{Reader, Store};

/// A dataset, and the settings of a run on it.
fn dataset(prompt: &str) -> (tempfile::TempDir, RunConfig) {
    let folder = tempfile::tempdir().unwrap();
    let row = format!("{{\"image\": \"a.png\", \"prompt\": \"{prompt}\"}}\n");
    fs::write(folder.path().join("train_metadata.jsonl"), row).unwrap();
    fs::write(folder.path().join("a.png"), "not decoded").unwrap();
    let mut config = MadeUpRun::new().config;
    config.dataset.path = folder.path().display().to_string();
    config.learner.learning_rate = 0.5;
    (folder, config)
}

fn hash(config: &RunConfig) -> String {
    let rows = retouch_dataset::read(Path::new(&config.dataset.path), Split::Train).unwrap();
    dataset::hash(&rows)
}

#[test]
fn a_new_run_begins_where_the_old_one_has_its_last_whole_checkpoint() {
    let old = MadeUpRun::with_checkpoints(3);
    let torn = old.path().join("checkpoints/3/state.safetensors");
    fs::write(torn, "torn").unwrap();
    let before = tree(old.path());
    let (_dataset, config) = dataset("p");
    let parent = tempfile::tempdir().unwrap();
    let new = RunFolder::new(parent.path().join("new"));
    let from = fork(&old.folder(), &new, &config).unwrap();
    assert_eq!(from, Iteration(2));
    assert_eq!(tree(old.path()), before, "the old folder is not touched");

    let (mut store, record) = Store::open(new.path(), &config, &hash(&config)).unwrap();
    assert_eq!(record.committed.iteration, from);
    assert_eq!(record.checkpoint.committed, record.committed);
    for (hash, name) in record.checkpoint.files() {
        let bytes = fs::read(new.join(&name)).unwrap();
        assert_eq!(ContentHash::of(&bytes), hash, "{name}");
    }
    let adapter = record.checkpoint.ema_adapter.unwrap().to_string();
    assert!(
        new.adapter(&adapter)
            .join("adapter_model.safetensors")
            .exists()
    );
    assert!(record.open.is_empty());
    // Another dataset: its order begins anew, and nothing is banned.
    assert_eq!(record.banned, []);
    assert_eq!(
        (record.drawn_to, &record.positions[..]),
        (0, &[(Iteration(3), 0)][..])
    );
    let told = store.last_events(1).unwrap().pop().unwrap().message;
    let expected = format!("from checkpoint 2 of the run in {}", old.path().display());
    assert!(told.contains(&expected), "{told}");
    drop(store);
    assert_eq!(
        Reader::open(new.path())
            .unwrap()
            .iterations()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn on_the_same_dataset_order_and_bans_go_on() {
    let (_dataset, config) = dataset("p");
    let rows = hash(&config);
    let old = MadeUpRun::new();
    let (mut store, _) = Store::open(old.path(), &old.config, &rows).unwrap();
    (1..=3).for_each(|iteration| old.checkpoint(&mut store, iteration));
    drop(store);
    let parent = tempfile::tempdir().unwrap();
    let new = RunFolder::new(parent.path());
    fork(&old.folder(), &new, &config).unwrap();
    let (_, record) = Store::open(new.path(), &config, &rows).unwrap();
    assert_eq!((record.drawn_to, record.banned.len()), (30, 3));
}

#[test]
fn what_can_not_be_forked_is_refused_and_nothing_is_left() {
    let old = MadeUpRun::with_checkpoints(2);
    let (_dataset, config) = dataset("p");
    let parent = tempfile::tempdir().unwrap();
    let new = RunFolder::new(parent.path().join("new"));
    let refused = |old: &RunFolder, new: &RunFolder, config: &RunConfig| {
        let error = fork(old, new, config).unwrap_err();
        assert!(
            !new.record().exists() && !new.checkpoints().exists(),
            "{error}"
        );
        error.to_string()
    };
    let mut other = config.clone();
    other.lora.adapter.rank = 3;
    let text = refused(&old.folder(), &new, &other);
    let rank = old.config.lora.adapter.rank;
    assert!(text.contains(&format!("lora.rank: {rank} -> 3")), "{text}");

    let mut staler = config.clone();
    staler.rollout.staleness_max += 1;
    let text = refused(&old.folder(), &new, &staler);
    assert!(text.contains("rollout.staleness_max: "), "{text}");

    let taken = RunFolder::new(parent.path().join("taken"));
    fs::create_dir(taken.path()).unwrap();
    fs::write(taken.config(), "").unwrap();
    let text = refused(&old.folder(), &taken, &config);
    assert!(text.contains("taken is not empty"), "{text}");

    let empty = MadeUpRun::new();
    let text = refused(&empty.folder(), &new, &config);
    assert!(text.contains("has no whole checkpoint"), "{text}");
    drop(empty.store());
    let text = refused(&empty.folder(), &new, &config);
    assert!(text.contains("has no whole checkpoint"), "{text}");

    for iteration in 1..=2 {
        let state = format!("checkpoints/{iteration}/state.safetensors");
        fs::remove_file(old.path().join(state)).unwrap();
    }
    let text = refused(&old.folder(), &new, &config);
    assert!(
        text.contains("checkpoints/2/state.safetensors is missing"),
        "{text}"
    );
}
