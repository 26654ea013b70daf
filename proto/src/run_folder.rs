//! The run folder: every name in it, in one place. The names are public and do not change: users and scripts read them.
//!
//! | name | what it is | written by | read by |
//! |---|---|---|---|
//! | `config.toml` | the resolved run file | `launch`, coordinator | `launch`, lookups without a coordinator |
//! | `run.db` | the record (SQLite; coordinator/RECORD.md). A schema update keeps the old one as `run.db.schema<N>`, a start that finds it damaged as `run.db.damaged` | coordinator | coordinator, report, lookups |
//! | `run.lock` | held by the coordinator that writes the record | coordinator | coordinator |
//! | `launch.lock` | held by the `launch` that owns the folder | `launch` | `launch` |
//! | `coordinator.addr` | `host:port` of the running coordinator | coordinator | workers of this folder, all commands |
//! | `credentials/` | the run's authority, and certificate and token of each role | `launch`, coordinator | every process of the run |
//! | `checkpoints/<iteration>/` | what the run can go on from: [`CheckpointFile`]s. One that a start finds damaged is moved to `<iteration>.damaged` | learner, coordinator | learners, archive |
//! | `initial/` | the [`CheckpointFile`]s that a run with `lora.init` starts from; its policy may be the learners' reference | `coordinator` | coordinator, learners |
//! | `adapters/<hash>/` | exported EMA adapters, as peft and diffusers read them | learner | archive, `evaluate`, report, people |
//! | `adapters/latest`, `adapters/final` | links to the newest, and to the one of a run that is done | learner | people |
//! | `events/` | TensorBoard's file; each start of the coordinator writes a new one with all steps. Pictures are in `events/samples/` | coordinator, `samples` | TensorBoard |
//! | `logs/<process>.log` | output of each process | `launch` | `launch`, people |
//! | `scratch/<worker>/` | blobs that a worker spills to disk | workers | the same worker |
//! | `launches.json` | wall clock and memory over all launches | `launch`, report | `launch`, report |
//! | `evaluation.json` | how far the held-out evaluation is, while `launch` evaluates | `launch` | `status`, `top` |
//! | `report.json`, `report.html`, `samples/` | the report and its pictures | report | people, scripts |
//! | `samples/heldout_<iteration>.png`, `samples/heldout/` | held-out pairs as adapters on the way edit them (cli/src/samples) | `samples`, `launch` | report, people |
//! | `samples/groups/<iteration>/` | a group of the iteration with all candidates and scores ([`SavedGroup`](crate::saved_group::SavedGroup)), the last ones and some of the older | reward workers | `groups --save`, `samples`, people |
//!
//! A checkpoint at a URL has the same names below `checkpoint-<iteration>/` (coordinator/src/archive.rs).

use std::path::{Path, PathBuf};

use crate::Iteration;
use crate::paths;
use crate::saved_group::SavedGroups;

const RECORD: &str = "run.db";
const CHECKPOINTS: &str = "checkpoints";
const ADAPTERS: &str = "adapters";

/// In the folder of adapters, the link to the newest.
pub const LATEST_ADAPTER: &str = "latest";
/// In the folder of adapters, the link to that of a run that is done.
pub const FINAL_ADAPTER: &str = "final";

/// The folder of the report's pictures, by which the page refers to them.
pub const SAMPLES: &str = "samples";

/// The run folder of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFolder(PathBuf);

/// A file of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointFile {
    /// The learner's whole state.
    State,
    /// The policy that samples next.
    Version,
    /// A policy before that, with which iterations after the checkpoint are sampled too (`rollout.staleness_max`).
    Earlier(Iteration),
    /// The record as it was, in the newest two; with it, a checkpoint's folder can be read as the run's own.
    Record,
}

impl CheckpointFile {
    /// Its name in the checkpoint's folder.
    pub fn file_name(self) -> String {
        match self {
            Self::State => "state.safetensors".to_owned(),
            Self::Version => "version.safetensors".to_owned(),
            Self::Earlier(iteration) => format!("policy-{iteration}.safetensors"),
            Self::Record => RECORD.to_owned(),
        }
    }

    /// The name in the run folder of what the run starts from.
    pub fn initial_name(self) -> String {
        format!("initial/{}", self.file_name())
    }

    /// Its name in the run folder, as [`BlobAddress::File`](crate::BlobAddress::File) and the archive have it.
    pub fn name(self, iteration: Iteration) -> String {
        format!("{CHECKPOINTS}/{iteration}/{}", self.file_name())
    }
}

/// The iterations that name entries of a folder, oldest first; none where it can't be read.
pub fn iterations_in(folder: &Path) -> Vec<Iteration> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut iterations: Vec<Iteration> = numbers.map(Iteration).collect();
    iterations.sort();
    iterations
}

/// The name of an exported adapter's folder in the run folder.
pub fn adapter_name(hash: &str) -> String {
    format!("{ADAPTERS}/{hash}")
}

/// Whether a name in the run folder can be a part of a checkpoint: whoever can write to an archive must not be able to
/// place credentials or a record.
pub fn is_part_of_checkpoint(name: &str) -> bool {
    let folder = name.split_once('/').map(|(folder, _)| folder);
    paths::is_inner(name) && matches!(folder, Some(CHECKPOINTS | ADAPTERS))
}

impl RunFolder {
    /// The folder at that path; it need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What has this name in the folder.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The resolved run file.
    pub fn config(&self) -> PathBuf {
        self.join("config.toml")
    }

    /// The record.
    pub fn record(&self) -> PathBuf {
        self.join(RECORD)
    }

    /// The lock of who writes the record.
    pub fn record_lock(&self) -> PathBuf {
        self.join("run.lock")
    }

    /// The lock of who launches from the folder.
    pub fn launch_lock(&self) -> PathBuf {
        self.join("launch.lock")
    }

    /// Where the coordinator leaves its address.
    pub fn coordinator_address(&self) -> PathBuf {
        self.join("coordinator.addr")
    }

    /// Certificates and tokens of the run's own authority.
    pub fn credentials(&self) -> PathBuf {
        self.join("credentials")
    }

    /// All checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.join(CHECKPOINTS)
    }

    /// The checkpoint of an iteration.
    pub fn checkpoint(&self, iteration: Iteration) -> PathBuf {
        self.checkpoints().join(iteration.to_string())
    }

    /// A file of what the run starts from, where that is not made of the seed.
    pub fn initial(&self, file: CheckpointFile) -> PathBuf {
        self.join(&file.initial_name())
    }

    /// All exported adapters.
    pub fn adapters(&self) -> PathBuf {
        self.join(ADAPTERS)
    }

    /// The exported adapter of a hash.
    pub fn adapter(&self, hash: &str) -> PathBuf {
        self.join(&adapter_name(hash))
    }

    /// TensorBoard's files.
    pub fn events(&self) -> PathBuf {
        self.join("events")
    }

    /// What the processes of a launch wrote.
    pub fn logs(&self) -> PathBuf {
        self.join("logs")
    }

    /// Where a worker spills blobs.
    pub fn scratch(&self, worker: &str) -> PathBuf {
        self.join("scratch").join(worker)
    }

    /// Sums over the launches of the run.
    pub fn launches(&self) -> PathBuf {
        self.join("launches.json")
    }

    /// How far the held-out evaluation is.
    pub fn evaluation(&self) -> PathBuf {
        self.join("evaluation.json")
    }

    /// The report for programs.
    pub fn report_json(&self) -> PathBuf {
        self.join("report.json")
    }

    /// The report for people.
    pub fn report_html(&self) -> PathBuf {
        self.join("report.html")
    }

    /// The report's pictures, and those that a run leaves on its way.
    pub fn samples(&self) -> PathBuf {
        self.join(SAMPLES)
    }

    /// One group of each iteration.
    pub fn saved_groups(&self) -> SavedGroups {
        SavedGroups::new(self.samples().join("groups"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_what_they_are() {
        let folder = RunFolder::new("r");
        let iteration = Iteration(3);
        let places = [
            (folder.config(), "r/config.toml"),
            (folder.record(), "r/run.db"),
            (folder.record_lock(), "r/run.lock"),
            (folder.launch_lock(), "r/launch.lock"),
            (folder.coordinator_address(), "r/coordinator.addr"),
            (folder.credentials(), "r/credentials"),
            (folder.checkpoints(), "r/checkpoints"),
            (folder.checkpoint(iteration), "r/checkpoints/3"),
            (
                folder.initial(CheckpointFile::Version),
                "r/initial/version.safetensors",
            ),
            (folder.adapters(), "r/adapters"),
            (folder.adapter("ab12"), "r/adapters/ab12"),
            (folder.events(), "r/events"),
            (folder.logs(), "r/logs"),
            (folder.scratch("learner-0"), "r/scratch/learner-0"),
            (folder.launches(), "r/launches.json"),
            (folder.evaluation(), "r/evaluation.json"),
            (folder.report_json(), "r/report.json"),
            (folder.report_html(), "r/report.html"),
            (folder.samples(), "r/samples"),
            (folder.saved_groups().of(iteration), "r/samples/groups/3"),
        ];
        for (place, name) in places {
            assert_eq!(place, Path::new(name));
        }
        let files = [
            (CheckpointFile::State, "checkpoints/3/state.safetensors"),
            (CheckpointFile::Version, "checkpoints/3/version.safetensors"),
            (
                CheckpointFile::Earlier(Iteration(2)),
                "checkpoints/3/policy-2.safetensors",
            ),
            (CheckpointFile::Record, "checkpoints/3/run.db"),
        ];
        for (file, name) in files {
            assert_eq!(file.name(iteration), name);
            assert_eq!(
                folder.join(name),
                folder.checkpoint(iteration).join(file.file_name())
            );
        }
    }

    #[test]
    fn only_checkpoints_and_adapters_are_parts_of_checkpoints() {
        let parts = [
            CheckpointFile::State.name(Iteration(3)),
            adapter_name("ab12") + "/adapter_model.safetensors",
        ];
        assert!(parts.iter().all(|name| is_part_of_checkpoint(name)));
        for other in [
            "",
            "run.db",
            "checkpoints",
            "credentials/control/token",
            "adapters/../run.db",
            "/checkpoints/3",
        ] {
            assert!(!is_part_of_checkpoint(other), "{other}");
        }
    }
}
