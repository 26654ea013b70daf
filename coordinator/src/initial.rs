//! The start of a run from an adapter (`lora.init`): its state and policy are the checkpoint of iteration 0, so that all
//! else goes on from it as from any other.

use std::fs;

use retouch_proto::run_folder::{CheckpointFile, RunFolder};
use retouch_proto::{ContentHash, Iteration, RunConfig};

use crate::fork::copy;
use crate::machine::record::{Blob, Checkpoint, Committed, Policy, Record};
use crate::store::{Store, StoreError};

const START: Iteration = Iteration(0);

/// What the run goes on from: `record`, or where the run has not begun and starts from an adapter, its checkpoint 0, which
/// is made of the files in [`RunFolder::initial`].
///
/// # Errors
/// If these files are not there, or the checkpoint can't be written.
pub(crate) fn begin(
    config: &RunConfig,
    folder: &RunFolder,
    store: &mut Store,
    record: Record,
) -> Result<Record, StoreError> {
    if config.lora.init.is_empty() || has_begun(&record) {
        return Ok(record);
    }
    let adapter = take(folder, CheckpointFile::Version)?;
    let checkpoint = Checkpoint {
        committed: Committed {
            iteration: START,
            state: Some(take(folder, CheckpointFile::State)?),
            policy: Policy {
                iteration: START,
                adapter: Some(adapter),
            },
        },
        earlier: Vec::new(),
        ema_adapter: None,
    };
    let message = format!(
        "this run starts from the adapter {}, version {}",
        config.lora.init,
        adapter.hash.short()
    );
    store.begin_from(checkpoint, record.incarnation, message)
}

fn has_begun(record: &Record) -> bool {
    record.checkpoint != Checkpoint::START
        || record.committed != Committed::START
        || !record.open.is_empty()
}

/// Copies a file to where the checkpoint has it.
fn take(folder: &RunFolder, file: CheckpointFile) -> Result<Blob, StoreError> {
    let from = folder.initial(file);
    let bytes = fs::read(&from).map_err(|source| StoreError::io(&from, source))?;
    let to = folder.join(&file.name(START));
    copy(&from, &to).map_err(|source| StoreError::io(&to, source))?;
    Ok(Blob {
        hash: ContentHash::of(&bytes),
        size_bytes: bytes.len() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fixture::MadeUpRun;

    /// A run from an adapter that has not begun.
    fn run() -> MadeUpRun {
        let mut run = MadeUpRun::new();
        run.config.lora.init = "sft".into();
        for (file, content) in [
            (CheckpointFile::State, "state"),
            (CheckpointFile::Version, "version"),
        ] {
            let path = run.folder().initial(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        run
    }

    #[test]
    fn a_run_from_an_adapter_begins_at_a_checkpoint_of_its_own() {
        let run = run();
        let (mut store, record) = run.open().unwrap();
        let begun = begin(&run.config, &run.folder(), &mut store, record).unwrap();
        assert_eq!(begun.committed.iteration, START);
        let version = ContentHash::of(b"version");
        assert_eq!(begun.committed.policy.hash(), Some(version));
        assert_eq!(begun.policies, [begun.committed.policy]);
        assert_eq!(begun.checkpoint.committed, begun.committed);
        for (hash, name) in begun.checkpoint.files() {
            let bytes = fs::read(run.folder().join(&name)).unwrap();
            assert_eq!(ContentHash::of(&bytes), hash, "{name}");
        }
        let told = store.last_events(1).unwrap().pop().unwrap();
        assert!(
            told.message.contains("starts from the adapter sft"),
            "{}",
            told.message
        );
        assert_eq!(begun.event_sequence, told.sequence);
        // The next start finds it, whatever became of the files that it was made of.
        drop(store);
        fs::remove_dir_all(run.path().join("initial")).unwrap();
        let (mut store, record) = run.open().unwrap();
        let again = begin(&run.config, &run.folder(), &mut store, record).unwrap();
        assert_eq!(again.committed, begun.committed);
    }

    #[test]
    fn a_run_that_has_begun_or_starts_from_the_seed_stays_as_it_is() {
        let mut run = run();
        let (mut store, _) = run.open().unwrap();
        run.checkpoint(&mut store, 1);
        drop(store);
        let (mut store, record) = run.open().unwrap();
        let kept = begin(&run.config, &run.folder(), &mut store, record).unwrap();
        assert_eq!(kept.committed.iteration, Iteration(1));
        run.config.lora.init.clear();
        let other = MadeUpRun::new();
        let (mut store, record) = other.open().unwrap();
        let kept = begin(&other.config, &other.folder(), &mut store, record).unwrap();
        assert_eq!(kept.committed, Committed::START);
    }
}
