//! Puts checkpoints away while the run goes on, and deletes those that need not stay.

use std::fs;
use std::path::Path;
use std::thread::{self, JoinHandle};

use retouch_proto::run_folder::{CheckpointFile, RunFolder, adapter_name};
use retouch_proto::status::IterationMetrics;
use retouch_proto::{Iteration, RunConfig};
use tokio::runtime;
use tokio::sync::{oneshot, watch};

use super::{Archive, ArchiveError, Keep, LocalFile, RunIdentity, Saved};
use crate::machine::record::Checkpoint;
use crate::store::{self, Reader};

/// A thread of its own: neither training nor the record waits for a slow store.
pub(crate) struct Keeper {
    thread: JoinHandle<()>,
}

/// What the keeper has to know.
pub(crate) struct KeeperOptions<'a> {
    /// The resolved run file.
    pub(crate) config: &'a RunConfig,
    /// The hash of the dataset's rows.
    pub(crate) dataset: &'a str,
    /// The run folder.
    pub(crate) folder: &'a RunFolder,
    /// The checkpoint that the run goes on from; its way to the URL may have been cut short.
    pub(crate) last: Iteration,
    /// Checkpoints that are complete, their snapshots included. It closes when the run ends.
    pub(crate) complete: watch::Receiver<Iteration>,
}

/// The run folder, and where else its checkpoints go.
struct Work {
    folder: RunFolder,
    run: RunIdentity,
    keep: Keep,
    archive: Option<Archive>,
}

impl Keeper {
    /// Starts the thread. Of several checkpoints that become complete while it is busy, it takes the newest.
    pub(crate) fn start(options: KeeperOptions<'_>) -> Result<Self, ArchiveError> {
        let KeeperOptions {
            config,
            dataset,
            folder,
            last,
            complete,
        } = options;
        let url = Some(&config.checkpoint.url).filter(|url| !url.is_empty());
        let work = Work {
            folder: folder.clone(),
            run: RunIdentity {
                config_toml: config.to_toml(),
                dataset: dataset.to_owned(),
            },
            keep: Keep::of(&config.checkpoint),
            archive: url.map(|url| Archive::open(url)).transpose()?,
        };
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ArchiveError::io(folder.path()))?;
        let thread = thread::Builder::new()
            .name("checkpoints".into())
            .spawn(move || runtime.block_on(work.run(last, complete)))
            .map_err(ArchiveError::io(folder.path()))?;
        Ok(Self { thread })
    }

    /// Waits for the last checkpoint to be away. A store that is away is not tried for ever.
    pub(crate) async fn finish(self) {
        // Not one of the runtime's threads: those are waited for at the end, and a store may be slow for long.
        let (sender, joined) = oneshot::channel();
        thread::spawn(move || drop(sender.send(self.thread.join())));
        let joined = joined.await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the thread that puts checkpoints away panicked");
        }
    }
}

impl Work {
    async fn run(self, last: Iteration, mut complete: watch::Receiver<Iteration>) {
        if let Some(archive) = &self.archive {
            told(last, archive.url(), self.catch_up(archive, last).await);
        }
        while complete.changed().await.is_ok() {
            let iteration = *complete.borrow_and_update();
            self.take(iteration).await;
        }
    }

    async fn take(&self, iteration: Iteration) {
        if let Some(archive) = &self.archive {
            told(
                iteration,
                archive.url(),
                self.put_away(archive, iteration).await,
            );
        }
        if let Err(error) = store::thin_out(&self.folder, iteration) {
            tracing::warn!(%error, "old copies of the record stay in the run folder");
        }
        if let Err(error) = self.prune_here(iteration) {
            tracing::warn!(%error, "old checkpoints stay in the run folder");
        }
    }

    /// Puts the last run's end away if it is not there.
    async fn catch_up(&self, archive: &Archive, last: Iteration) -> Result<(), ArchiveError> {
        if last.0 == 0 || archive.iterations().await?.contains(&last) {
            return Ok(());
        }
        store::take_missing_snapshot(&self.folder, last)?;
        self.put_away(archive, last).await
    }

    async fn put_away(&self, archive: &Archive, iteration: Iteration) -> Result<(), ArchiveError> {
        let snapshot = Reader::open(&self.folder.checkpoint(iteration))?;
        let checkpoint = snapshot.checkpoint()?;
        if checkpoint.committed.iteration > iteration {
            // Its snapshot came too late; that of the newer one comes next.
            return Ok(());
        }
        // Each time: since the start, somebody may have begun another run with the same URL.
        archive.check_is_of(&self.run).await?;
        let files = self.files(&checkpoint)?;
        let run = self.run.clone();
        archive.write(iteration, run, &self.folder, &files).await?;
        tracing::info!(%iteration, url = archive.url(), "a checkpoint was put away");
        let rewards = rewards(&snapshot)?;
        archive.prune(&self.keep, iteration, rewards).await
    }

    /// Everything that going on from this checkpoint needs.
    fn files(&self, checkpoint: &Checkpoint) -> Result<Vec<LocalFile>, ArchiveError> {
        let written = checkpoint.files().map(|(hash, name)| LocalFile {
            name,
            expected: Some(hash),
        });
        let mut files: Vec<LocalFile> = written.collect();
        let unchecked = |name| LocalFile {
            name,
            expected: None,
        };
        if let Some(adapter) = checkpoint.ema_adapter {
            let folder = adapter_name(&adapter.to_string());
            let mut names = names(&self.folder.join(&folder))?;
            names.sort();
            files.extend(
                names
                    .iter()
                    .map(|name| unchecked(format!("{folder}/{name}"))),
            );
        }
        let iteration = checkpoint.committed.iteration;
        files.push(unchecked(CheckpointFile::Record.name(iteration)));
        Ok(files)
    }

    /// Deletes checkpoints in the run folder that need not stay. Adapters do: they are what people keep.
    fn prune_here(&self, newest: Iteration) -> Result<(), ArchiveError> {
        if self.keep.last == 0 {
            return Ok(());
        }
        let reward_mean = rewards(&Reader::open(self.folder.path())?)?;
        let there = names(&self.folder.checkpoints())?;
        let numbers = there
            .iter()
            .filter_map(|name| name.parse().ok())
            .map(Iteration);
        let saved = numbers
            .filter(|iteration| *iteration <= newest)
            .map(|iteration| Saved {
                iteration,
                reward_mean: reward_mean(iteration),
            });
        for iteration in self.keep.dropped(&saved.collect::<Vec<_>>()) {
            let path = self.folder.checkpoint(iteration);
            fs::remove_dir_all(&path).map_err(ArchiveError::io(&path))?;
        }
        Ok(())
    }
}

fn told(iteration: Iteration, url: &str, outcome: Result<(), ArchiveError>) {
    if let Err(error) = outcome {
        tracing::warn!(%iteration, url, %error, "a checkpoint stays in the run folder alone");
    }
}

/// The judge's mean reward of what a checkpoint's policy sampled, which the iteration after it learned from.
fn rewards(record: &Reader) -> Result<impl Fn(Iteration) -> Option<f64> + use<>, ArchiveError> {
    let metrics: Vec<IterationMetrics> = record.iterations()?;
    Ok(move |iteration: Iteration| {
        let next = metrics
            .iter()
            .find(|metrics| metrics.iteration == iteration.next());
        next.map(|metrics| metrics.reward_mean)
    })
}

fn names(folder: &Path) -> Result<Vec<String>, ArchiveError> {
    let entries = fs::read_dir(folder).map_err(ArchiveError::io(folder))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.collect())
}

#[cfg(test)]
mod tests {
    use retouch_proto::ContentHash;
    use tempfile::TempDir;

    use super::*;
    use crate::archive::bring_back;
    use crate::store::Store;
    use crate::store::fixture::{MadeUpRun, ROWS, tree};

    /// A run folder, and a folder for what is put away.
    struct Run {
        run: MadeUpRun,
        elsewhere: TempDir,
    }

    impl std::ops::Deref for Run {
        type Target = MadeUpRun;

        fn deref(&self) -> &MadeUpRun {
            &self.run
        }
    }

    impl Run {
        fn new() -> Self {
            let (mut run, elsewhere) = (MadeUpRun::new(), tempfile::tempdir().unwrap());
            run.config.checkpoint.url = format!("file://{}/a", elsewhere.path().display());
            run.config.checkpoint.keep_last = 2;
            Self { run, elsewhere }
        }

        fn keeper(&self, last: u32, complete: watch::Receiver<Iteration>) -> Keeper {
            let options = KeeperOptions {
                config: &self.config,
                dataset: ROWS,
                folder: &self.folder(),
                last: Iteration(last),
                complete,
            };
            Keeper::start(options).unwrap()
        }

        fn work(&self) -> Work {
            Work {
                folder: self.folder(),
                run: RunIdentity {
                    config_toml: self.config.to_toml(),
                    dataset: ROWS.into(),
                },
                keep: Keep::of(&self.config.checkpoint),
                archive: Some(Archive::open(&self.config.checkpoint.url).unwrap()),
            }
        }

        async fn iterations(&self) -> Vec<u32> {
            let archive = Archive::open(&self.config.checkpoint.url).unwrap();
            let iterations = archive.iterations().await.unwrap();
            iterations
                .into_iter()
                .map(|iteration| iteration.0)
                .collect()
        }

        fn away(&self, name: &str) -> std::path::PathBuf {
            self.elsewhere.path().join("a").join(name)
        }
    }

    #[tokio::test]
    async fn the_last_checkpoint_is_away_when_the_run_is_over_and_another_folder_goes_on_from_it() {
        let run = Run::new();
        let mut store = run.store();
        let keeper = run.keeper(0, store.complete_checkpoints());
        for iteration in 1..=4 {
            run.checkpoint(&mut store, iteration);
        }
        drop(store);
        keeper.finish().await;
        assert_eq!(run.iterations().await.last(), Some(&4));
        let mut here = names(&run.folder().checkpoints()).unwrap();
        here.sort();
        assert_eq!(here, ["3", "4"], "keep_last = 2");

        let other = tempfile::tempdir().unwrap();
        bring_back(&run.config, ROWS, &RunFolder::new(other.path()))
            .await
            .unwrap();
        let brought = Reader::open(other.path()).unwrap().checkpoint().unwrap();
        assert_eq!(brought.committed.iteration, Iteration(4));
        for (hash, name) in brought.files() {
            let bytes = fs::read(other.path().join(name)).unwrap();
            assert_eq!(ContentHash::of(&bytes), hash);
        }
        assert!(RunFolder::new(other.path()).adapters().is_dir());
    }

    #[test]
    fn who_no_longer_waits_for_it_may_end() {
        let run = Run::new();
        // Of a run that does not end: nothing more comes, and it does not close.
        let (sender, complete) = watch::channel(Iteration(0));
        let keeper = run.keeper(0, complete);
        let (done, ended) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap();
            let moment = std::time::Duration::from_millis(10);
            let waited = runtime
                .block_on(async move { tokio::time::timeout(moment, keeper.finish()).await });
            assert!(waited.is_err());
            drop(runtime);
            done.send(()).unwrap();
        });
        let ended = ended.recv_timeout(std::time::Duration::from_secs(20));
        drop(sender);
        ended.unwrap();
    }

    #[tokio::test]
    async fn a_checkpoint_whose_way_was_cut_short_goes_at_the_next_start() {
        let run = Run::new();
        let mut store = run.store();
        run.checkpoint(&mut store, 1);
        drop(store);
        fs::remove_file(run.path().join(CheckpointFile::Record.name(Iteration(1)))).unwrap();
        let store = run.store();
        let keeper = run.keeper(1, store.complete_checkpoints());
        drop(store);
        keeper.finish().await;
        assert_eq!(run.iterations().await, [1]);
    }

    #[tokio::test]
    async fn a_store_that_fails_is_named_and_tried_again_with_the_next_checkpoint() {
        let run = Run::new();
        let mut store = run.store();
        let mut complete = store.complete_checkpoints();
        run.checkpoint(&mut store, 1);
        complete.changed().await.unwrap();
        let work = run.work();
        let archive = work.archive.as_ref().unwrap();
        let folder = run.elsewhere.path().join("a");
        fs::remove_dir(&folder).unwrap();
        fs::write(&folder, "no folder").unwrap();
        let error = work.put_away(archive, Iteration(1)).await.unwrap_err();
        assert!(error.to_string().starts_with(archive.url()), "{error}");
        fs::remove_file(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        run.checkpoint(&mut store, 2);
        complete.changed().await.unwrap();
        work.put_away(archive, Iteration(2)).await.unwrap();
        assert_eq!(run.iterations().await, [2]);
    }

    #[tokio::test]
    async fn of_several_checkpoints_the_newest_whole_one_is_taken() {
        let run = Run::new();
        for iteration in [1, 2] {
            let mut store = run.store();
            let keeper = run.keeper(0, store.complete_checkpoints());
            run.checkpoint(&mut store, iteration);
            drop(store);
            keeper.finish().await;
        }
        let state = "a/checkpoint-2/checkpoints/2/state.safetensors";
        fs::write(run.elsewhere.path().join(state), "stat").unwrap();
        let other = tempfile::tempdir().unwrap();
        bring_back(&run.config, ROWS, &RunFolder::new(other.path()))
            .await
            .unwrap();
        let brought = Reader::open(other.path()).unwrap().checkpoint().unwrap();
        assert_eq!(brought.committed.iteration, Iteration(1));

        let state = "a/checkpoint-1/checkpoints/1/state.safetensors";
        fs::write(run.elsewhere.path().join(state), "stat").unwrap();
        let another = tempfile::tempdir().unwrap();
        let error = bring_back(&run.config, ROWS, &RunFolder::new(another.path()))
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains(state.trim_start_matches("a/")),
            "{error}"
        );
    }

    /// Five checkpoints that all stay, here and away.
    async fn five() -> Run {
        let mut run = Run::new();
        run.run.config.checkpoint.keep_last = 0;
        let work = run.work();
        let mut store = run.store();
        let mut complete = store.complete_checkpoints();
        for iteration in 1..=5 {
            run.checkpoint(&mut store, iteration);
            complete.changed().await.unwrap();
            work.take(Iteration(iteration)).await;
        }
        run
    }

    #[tokio::test]
    async fn copies_of_the_record_are_two_whatever_the_number_of_checkpoints() {
        let run = five().await;
        let copies = |folder: &Path| {
            let names = tree(folder).into_keys();
            let copies = names.filter(|name| name.ends_with("/run.db"));
            copies.collect::<Vec<_>>()
        };
        assert_eq!(
            copies(run.path()),
            ["checkpoints/4/run.db", "checkpoints/5/run.db"]
        );
        let away = [4, 5].map(|i| format!("a/checkpoint-{i}/checkpoints/{i}/run.db"));
        assert_eq!(copies(run.elsewhere.path()), away);
        assert_eq!(run.iterations().await, [1, 2, 3, 4, 5]);
    }

    #[tokio::test]
    async fn an_older_checkpoint_comes_back_with_a_later_record() {
        let run = five().await;
        for iteration in 4..=5 {
            let state = format!("checkpoint-{iteration}/checkpoints/{iteration}/state.safetensors");
            fs::write(run.away(&state), "torn").unwrap();
        }
        // The record of the newest is torn too: that of the one before it says enough.
        fs::write(run.away("checkpoint-5/checkpoints/5/run.db"), "torn").unwrap();
        let other = tempfile::tempdir().unwrap();
        bring_back(&run.config, ROWS, &RunFolder::new(other.path()))
            .await
            .unwrap();
        let (_, record) = Store::open(other.path(), &run.config, ROWS).unwrap();
        assert_eq!(record.checkpoint.committed.iteration, Iteration(3));
        let events = Reader::open(other.path()).unwrap().last_events(2).unwrap();
        let told: Vec<&str> = events.iter().map(|event| event.message.as_str()).collect();
        assert!(
            told[0].ends_with("checkpoint 3 was brought back instead"),
            "{told:?}"
        );
        assert!(
            told[1].ends_with("the last whole checkpoint is 3"),
            "{told:?}"
        );
        let left = tree(other.path()).into_keys();
        let left: Vec<String> = left.filter(|name| name.ends_with("partial")).collect();
        assert_eq!(left, [""; 0]);
    }

    #[tokio::test]
    async fn what_is_here_is_preferred_and_what_is_damaged_here_is_brought_back() {
        let run = five().await;
        fs::remove_file(run.folder().record()).unwrap();
        fs::remove_dir_all(run.away("")).unwrap();
        bring_back(&run.config, ROWS, &run.folder()).await.unwrap();
        let (_, record) = run.open().unwrap();
        assert_eq!(record.checkpoint.committed.iteration, Iteration(5));

        let run = five().await;
        fs::write(run.folder().record(), "no database").unwrap();
        fs::remove_dir_all(run.folder().checkpoints()).unwrap();
        bring_back(&run.config, ROWS, &run.folder()).await.unwrap();
        let (_, record) = run.open().unwrap();
        assert_eq!(record.checkpoint.committed.iteration, Iteration(5));
        assert!(run.path().join("run.db.damaged").exists());
    }
}
