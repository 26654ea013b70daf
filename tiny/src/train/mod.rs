//! How the tiny assets are made: dataset, autoencoder, base editor, judge.
//!
//! Every stage leaves a folder behind and is skipped when that folder is there, so a making that
//! was interrupted goes on where it was.

mod agreement;
mod candidates;
mod editor;
mod files;
mod fit;
mod judge;
mod vae;

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use agreement::{Agreement, JudgeReport};
pub use editor::EditorReport;
pub use vae::VaeReport;

use crate::dataset::{Dataset, Targets, WriteError};

/// The committed dataset.
const DATASET: Dataset = Dataset {
    seed: 1,
    train: 1536,
    test: 512,
    targets: Targets::Omitted,
};

/// What is told of progress: the stage, the step, all its steps, and a number that should fall.
/// `Break` ends the making; started again, it goes on from the last finished stage.
pub type Watch<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// A step of a stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// The stage.
    pub stage: &'static str,
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// The loss of the step, where there is one.
    pub loss: f64,
}

/// Where things are made.
#[derive(Clone, Debug)]
pub struct Options {
    /// The assets: `dataset`, `editor`, `judge`.
    pub assets: PathBuf,
    /// What is needed on the way: training pictures, checkpoints.
    pub work: PathBuf,
    /// Decides everything.
    pub seed: u64,
}

/// What was measured on held-out scenes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The autoencoder.
    pub vae: VaeReport,
    /// The base editor.
    pub editor: EditorReport,
    /// The judge.
    pub judge: JudgeReport,
}

/// Why the assets can't be made.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The dataset can't be written.
    #[error(transparent)]
    Dataset(#[from] WriteError),
    /// A model can't be written or read.
    #[error(transparent)]
    Model(#[from] retouch_models::weights::LoadError),
    /// The judge can't be written, read or asked.
    #[error(transparent)]
    Judge(#[from] retouch_models::judge::JudgeError),
    /// The editor can't encode or decode.
    #[error(transparent)]
    Edit(#[from] retouch_models::editor::EditError),
    /// The fine-tuning of the editor failed.
    #[error(transparent)]
    Sft(#[from] retouch_learner::sft::SftError),
    /// A file can't be written or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The watcher asked to stop.
    #[error("stopped at step {step} of {stage}; started again, the making goes on from there")]
    Stopped {
        /// The stage.
        stage: &'static str,
        /// The step.
        step: u64,
    },
}

impl TrainError {
    /// What makes of an IO error one that names the file or folder.
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }
}

/// Makes all assets.
///
/// # Errors
/// See [`TrainError`].
pub fn make(options: &Options, watch: Watch<'_>) -> Result<Report, TrainError> {
    let Options { assets, work, seed } = options;
    DATASET.write(&assets.join("dataset"))?;
    let vae = stage(work, "vae", |folder| vae::train(folder, *seed, watch))?;
    let editor = stage(work, "editor", |folder| {
        editor::train(folder, &vae::trained(&work.join("vae")), *seed, watch)
    })?;
    let judge = stage(work, "judge", |folder| {
        let folder_of_editors = work.join("editor");
        let editors = judge::Editors {
            base: editor::base(&folder_of_editors),
            levels: editor::levels(&folder_of_editors),
        };
        judge::train(folder, &editors, *seed, watch)
    })?;
    let report = Report { vae, editor, judge };
    editor::publish(&work.join("editor"), &assets.join("editor"))?;
    judge::publish(&work.join("judge"), &assets.join("judge"))?;
    write_report(&assets.join("report.json"), &report)?;
    Ok(report)
}

/// Runs a stage unless its report is there already.
fn stage<R: Serialize + for<'de> Deserialize<'de>>(
    work: &Path,
    name: &str,
    run: impl FnOnce(&Path) -> Result<R, TrainError>,
) -> Result<R, TrainError> {
    let folder = work.join(name);
    let path = folder.join("report.json");
    let known = fs::read_to_string(&path).ok();
    if let Some(report) = known.and_then(|text| serde_json::from_str(&text).ok()) {
        return Ok(report);
    }
    fs::create_dir_all(&folder).map_err(TrainError::at(&folder))?;
    let report = run(&folder)?;
    write_report(&path, &report)?;
    Ok(report)
}

fn write_report<R: Serialize>(path: &Path, report: &R) -> Result<(), TrainError> {
    let text = serde_json::to_string_pretty(report).expect("reports have string keys") + "\n";
    fs::write(path, text).map_err(TrainError::at(path))
}

fn tell(watch: Watch<'_>, progress: Progress) -> Result<(), TrainError> {
    match watch(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(TrainError::Stopped {
            stage: progress.stage,
            step: progress.step,
        }),
    }
}
