//! Checkpoints in a folder, and, where `$RETOUCH_TEST_S3` is a bucket's URL, at a real S3 server
//! (`cargo xtask s3` starts one). Invariants are those of the module.

use std::fs;

use retouch_proto::config::{Preset, preset};

use super::objects::Objects;
use super::*;
use crate::machine::record::{Blob, Checkpoint, Committed, Entry};
use crate::store::Store;
use crate::store::fixture::tree;

/// Several parts of a multipart upload.
const LARGE: usize = 20_000_000;
const SMALL: usize = 1_000;

/// A run folder, and an archive of its own.
struct Place {
    run_dir: tempfile::TempDir,
    archive: Archive,
    state_bytes: usize,
}

/// Every test is made in a folder, and at the S3 server if there is one.
fn places(test: &str, state_bytes: usize) -> Vec<Place> {
    let place = |url: Option<String>| {
        let run_dir = tempfile::tempdir().unwrap();
        let url = url.unwrap_or(format!("file://{}/elsewhere", run_dir.path().display()));
        Place {
            archive: Archive::open(&url).unwrap(),
            run_dir,
            state_bytes,
        }
    };
    let bucket = std::env::var("RETOUCH_TEST_S3").ok();
    let server = bucket.map(|bucket| format!("{bucket}/{test}-{}", std::process::id()));
    let urls = std::iter::once(None).chain(server.map(Some));
    urls.map(place).collect()
}

fn run() -> RunIdentity {
    RunIdentity {
        config_toml: "seed = 1".into(),
        dataset: "rows".into(),
    }
}

fn state_name(iteration: u32) -> String {
    CheckpointFile::State.name(Iteration(iteration))
}

/// A record whose last checkpoint has this state.
fn record(iteration: Iteration, state: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(folder.path(), &preset(Preset::Tiny), "rows").unwrap();
    let state = Blob {
        hash: ContentHash::of(state),
        size_bytes: state.len() as u64,
    };
    let committed = Committed {
        iteration,
        state: Some(state),
        ..Committed::START
    };
    let checkpoint = Checkpoint {
        earlier: Vec::new(),
        committed,
        ema_adapter: None,
    };
    store.write(&[Entry::Checkpointed(checkpoint)]).unwrap();
    drop(store);
    fs::read(folder.path().join(CheckpointFile::Record.name(iteration))).unwrap()
}

impl Place {
    /// A state and a record.
    fn files(&self, iteration: u32) -> Vec<LocalFile> {
        let byte = |i: usize| (i.wrapping_mul(2 * iteration as usize + 1) >> 7) as u8;
        let state: Vec<u8> = (0..self.state_bytes).map(byte).collect();
        let names = [
            state_name(iteration),
            CheckpointFile::Record.name(Iteration(iteration)),
        ];
        let contents = [state.clone(), record(Iteration(iteration), &state)];
        let file = |(name, content): (String, Vec<u8>)| {
            let path = self.run_dir.path().join(&name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &content).unwrap();
            let expected = Some(ContentHash::of(&content));
            LocalFile { name, expected }
        };
        names.into_iter().zip(contents).map(file).collect()
    }

    async fn write(&self, iteration: u32) -> Manifest {
        let files = self.files(iteration);
        let (archive, folder) = (&self.archive, RunFolder::new(self.run_dir.path()));
        let written = archive
            .write(Iteration(iteration), run(), &folder, &files)
            .await;
        written.unwrap()
    }

    async fn iterations(&self) -> Vec<u32> {
        let iterations = self.archive.iterations().await.unwrap();
        iterations
            .into_iter()
            .map(|iteration| iteration.0)
            .collect()
    }

    /// What is wrong with a checkpoint; the folder that it was to be brought into must have no record.
    async fn refusal(&self, iteration: u32, run: &RunIdentity) -> ArchiveError {
        let back = tempfile::tempdir().unwrap();
        let back = RunFolder::new(back.path());
        let restored = self.archive.restore(Iteration(iteration), run, &back).await;
        assert!(!back.record().exists(), "invariant 3");
        let left = fs::read_dir(back.path()).unwrap().count();
        let left = left.min(tree(back.path()).len());
        assert_eq!(left, 0, "temporary files are removed");
        restored.unwrap_err()
    }

    fn objects(&self) -> &Objects {
        &self.archive.objects
    }
}

#[tokio::test]
async fn what_was_put_away_comes_back() {
    for place in places("round", LARGE) {
        assert_eq!(place.iterations().await, [0; 0]);
        let written = place.write(3).await;
        assert_eq!(place.iterations().await, [3]);
        let manifest = place.archive.manifest(Iteration(3)).await.unwrap();
        assert_eq!(manifest, written);
        let back = tempfile::tempdir().unwrap();
        place
            .archive
            .restore(Iteration(3), &run(), &RunFolder::new(back.path()))
            .await
            .unwrap();
        let read =
            |folder: &tempfile::TempDir, name: &str| fs::read(folder.path().join(name)).unwrap();
        let state = state_name(3);
        assert!(read(&back, &state) == read(&place.run_dir, &state));
        let record = CheckpointFile::Record.name(Iteration(3));
        assert!(read(&back, "run.db") == read(&place.run_dir, &record));
        let left = fs::read_dir(back.path().join("checkpoints/3")).unwrap();
        assert_eq!(left.count(), 2, "nothing half-done");
    }
}

#[tokio::test]
async fn a_torn_checkpoint_is_refused_by_name() {
    for place in places("torn", LARGE) {
        place.write(3).await;
        let object = object(Iteration(3), &state_name(3));
        let whole = place.objects().get(&object, u64::MAX).await.unwrap();
        let mut flipped = whole.clone();
        flipped[15_000_000] ^= 1;
        let cases = [
            (
                whole[..whole.len() / 2].to_vec(),
                "it has 10000000 bytes, expected 20000000",
            ),
            (flipped, "its content hashes to "),
        ];
        for (bytes, reason) in cases {
            place.objects().put(&object, bytes).await.unwrap();
            let error = place.refusal(3, &run()).await;
            assert!(matches!(error, ArchiveError::Torn { .. }), "{error}");
            let named = format!("{}/{object} is torn: {reason}", place.archive.url());
            assert!(error.to_string().starts_with(&named), "{error}");
        }
        place.objects().delete(&object).await.unwrap();
        let error = place.refusal(3, &run()).await.to_string();
        assert!(
            error.ends_with("state.safetensors is torn: it is missing"),
            "{error}"
        );
        place.objects().put(&object, whole).await.unwrap();
        damage_record(&place).await;
    }
}

/// A record that was put away damaged, one of another checkpoint, and a manifest that leaves a file out.
async fn damage_record(place: &Place) {
    let name = CheckpointFile::Record.name(Iteration(3));
    let mut manifest = place.archive.manifest(Iteration(3)).await.unwrap();
    let whole = manifest.clone();
    let about = object(Iteration(3), MANIFEST);
    for (content, reason) in [
        (
            b"no database".repeat(99),
            "run.db is torn: file is not a database",
        ),
        (
            record(Iteration(4), b"state"),
            "run.db is torn: it has no checkpoint 3",
        ),
        (
            record(Iteration(3), b"state"),
            "state.safetensors is torn: its content hashes to ",
        ),
    ] {
        let file = manifest.files.iter_mut().find(|file| file.name == name);
        let file = file.unwrap();
        (file.bytes, file.blake3) = (content.len() as u64, ContentHash::of(&content));
        let text = manifest.to_json();
        place.objects().put(&about, text.into()).await.unwrap();
        let object = object(Iteration(3), &name);
        place.objects().put(&object, content).await.unwrap();
        let error = place.refusal(3, &run()).await;
        assert!(matches!(error, ArchiveError::Torn { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    for (left_out, reason) in [
        (name.clone(), "run.db is torn: it is missing"),
        (state_name(3), "its manifest does not name it"),
    ] {
        place.write(3).await;
        let mut manifest = whole.clone();
        manifest.files.retain(|file| file.name != left_out);
        let text = manifest.to_json();
        place.objects().put(&about, text.into()).await.unwrap();
        let error = place.refusal(3, &run()).await.to_string();
        assert!(error.ends_with(reason), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_is_torn_here_is_not_put_away() {
    for place in places("torn-here", SMALL) {
        let mut files = place.files(3);
        files[0].expected = Some(ContentHash::of(b"what the learners agreed on"));
        let (archive, folder) = (&place.archive, RunFolder::new(place.run_dir.path()));
        let written = archive.write(Iteration(3), run(), &folder, &files).await;
        let error = written.unwrap_err().to_string();
        let file = folder.join(&state_name(3));
        assert!(
            error.starts_with(&format!("{} is torn", file.display())),
            "{error}"
        );
        assert_eq!(place.iterations().await, [0; 0], "invariant 1");
    }
}

#[tokio::test]
async fn a_checkpoint_that_was_never_finished_is_none() {
    for place in places("unfinished", SMALL) {
        place.write(3).await;
        place.write(4).await;
        let about = object(Iteration(3), MANIFEST);
        place.objects().delete(&about).await.unwrap();
        assert_eq!(place.iterations().await, [4]);
        let all = Keep { last: 0, best: 0 };
        place
            .archive
            .prune(&all, Iteration(4), |_| None)
            .await
            .unwrap();
        let left = place.objects().list().await.unwrap();
        assert!(
            left.iter().all(|name| name.starts_with("checkpoint-4/")),
            "{left:?}"
        );
        assert_eq!(left.len(), 3);
    }
}

#[tokio::test]
async fn those_that_need_not_stay_are_deleted_and_later_ones_are_left_alone() {
    for place in places("prune", SMALL) {
        for iteration in 1..=5 {
            place.write(iteration).await;
        }
        let reward_mean =
            |iteration: Iteration| [0.0, 0.9, 0.1, 0.2].get(iteration.0 as usize).copied();
        let keep = Keep { last: 1, best: 1 };
        place
            .archive
            .prune(&keep, Iteration(4), reward_mean)
            .await
            .unwrap();
        assert_eq!(place.iterations().await, [1, 4, 5]);
        let left = place.objects().list().await.unwrap();
        assert_eq!(left.len(), 9, "three files each");
    }
}

#[tokio::test]
async fn another_runs_checkpoint_is_refused_with_the_keys_that_differ() {
    for place in places("foreign", SMALL) {
        place.write(3).await;
        place.archive.check_is_of(&run()).await.unwrap();
        let other = RunIdentity {
            config_toml: "seed = 2\n[model]\npath = \"models/b\"".into(),
            dataset: "others".into(),
        };
        for error in [
            place.refusal(3, &other).await,
            place.archive.check_is_of(&other).await.unwrap_err(),
        ] {
            assert!(matches!(error, ArchiveError::Foreign { .. }), "{error}");
            let text = error.to_string();
            let named = format!("checkpoint 3 at {} is another run's: ", place.archive.url());
            assert!(text.starts_with(&named), "{text}");
            for part in [
                "model",
                "models/b",
                "seed: 1 -> 2",
                "the dataset's rows hash to rows -> others",
            ] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    }
}

#[test]
fn urls_of_other_kinds_are_refused() {
    for url in ["ftp://host/x", "runs/here", "memory:///x", "file://host/x"] {
        let error = Archive::open(url).unwrap_err().to_string();
        assert!(
            error.contains(url) && error.contains("checkpoint.url"),
            "{error}"
        );
    }
}
