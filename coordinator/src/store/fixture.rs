//! A run for tests of what it leaves on disk: nobody works, but every file and row is there.

use std::fs;
use std::path::Path;

use retouch_proto::config::{Preset, preset};
use retouch_proto::status::{Event, EventKind, IterationMetrics, Totals};
use retouch_proto::{ContentHash, Iteration, RunConfig, RunFolder};
use tempfile::TempDir;

use super::{Store, StoreError};
use crate::machine::record::{Blob, Checkpoint, Committed, CommittedEntry, Entry, Policy, Record};

pub(crate) const ROWS: &str = "rows";

/// A run folder and its settings.
pub(crate) struct MadeUpRun {
    run_dir: TempDir,
    pub(crate) config: RunConfig,
}

impl MadeUpRun {
    pub(crate) fn new() -> Self {
        Self {
            run_dir: tempfile::tempdir().unwrap(),
            config: preset(Preset::Tiny),
        }
    }

    /// With that many iterations, each with a checkpoint; closed.
    pub(crate) fn with_checkpoints(iterations: u32) -> Self {
        let run = Self::new();
        let mut store = run.store();
        (1..=iterations).for_each(|iteration| run.checkpoint(&mut store, iteration));
        run
    }

    pub(crate) fn path(&self) -> &Path {
        self.run_dir.path()
    }

    pub(crate) fn folder(&self) -> RunFolder {
        RunFolder::new(self.path())
    }

    pub(crate) fn store(&self) -> Store {
        self.open().unwrap().0
    }

    pub(crate) fn open(&self) -> Result<(Store, Record), StoreError> {
        Store::open(self.path(), &self.config, ROWS)
    }

    /// An iteration from its beginning to its checkpoint.
    pub(crate) fn checkpoint(&self, store: &mut Store, iteration: u32) {
        let iteration = Iteration(iteration);
        let checkpoint = self.write_files(iteration);
        let position = 10 * u64::from(iteration.0 - 1);
        let committed = CommittedEntry {
            committed: checkpoint.committed,
            metrics: IterationMetrics {
                iteration,
                ..IterationMetrics::default()
            },
            kept: Vec::new(),
            banned: vec![iteration.0],
            next_position: position + 10,
            totals: Totals::default(),
        };
        let event = Event {
            sequence: iteration.0.into(),
            time_unix_ms: 1,
            iteration,
            kind: EventKind::IterationCommitted,
            message: "m".repeat(100),
        };
        let opened = Entry::Opened {
            iteration,
            position,
        };
        let committed = Entry::Committed(Box::new(committed));
        store
            .write(&[opened, committed, Entry::Event(event)])
            .unwrap();
        store.write(&[Entry::Checkpointed(checkpoint)]).unwrap();
        // So that it knows no more than its checkpoint.
        store.snapshots.wait();
    }

    /// What a learner writes for a checkpoint.
    fn write_files(&self, iteration: Iteration) -> Checkpoint {
        let (state, version) = (format!("state {iteration}"), format!("version {iteration}"));
        let folder = self.folder().checkpoint(iteration);
        let adapter = ContentHash::of(b"adapter");
        let exported = self.folder().adapter(&adapter.to_string());
        for folder in [&folder, &exported] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(folder.join("state.safetensors"), &state).unwrap();
        fs::write(folder.join("version.safetensors"), &version).unwrap();
        fs::write(exported.join("adapter_model.safetensors"), "adapter").unwrap();
        let blob = |text: &str| Blob {
            hash: ContentHash::of(text.as_bytes()),
            size_bytes: text.len() as u64,
        };
        let committed = Committed {
            iteration,
            state: Some(blob(&state)),
            policy: Policy {
                iteration,
                adapter: Some(blob(&version)),
            },
        };
        Checkpoint {
            earlier: Vec::new(),
            committed,
            ema_adapter: Some(adapter),
        }
    }
}

impl Store {
    /// As a full disk does: the record grows to so many pages at most, or stays as it is.
    pub(crate) fn limit_pages(&mut self, pages: u32) {
        let pragma = format!("PRAGMA max_page_count = {pages}");
        let set = self
            .connection
            .query_row(&pragma, [], |row| row.get::<_, u32>(0));
        set.unwrap();
    }
}

/// All files below a folder, by their names from there on, with what is in them.
pub(crate) fn tree(folder: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            let below = tree(&path).into_iter();
            found.extend(below.map(|(inner, content)| (format!("{name}/{inner}"), content)));
        } else {
            found.insert(name, fs::read(&path).unwrap_or_default());
        }
    }
    found
}
