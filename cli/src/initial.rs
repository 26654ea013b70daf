//! `lora.init`: an adapter as what a run starts from.

use std::fs;

use anyhow::Context;
use retouch_learner::{
    initial::{self, InitialError},
    state::LearnerState,
};
use retouch_models::{editor::Layout, exchange, lora::Projection};
use retouch_proto::{
    RunConfig, RunFolder,
    config::Problem,
    files::{PUBLIC, write_whole},
    run_folder::CheckpointFile,
};

use crate::exit::UsageError;

/// What of the adapter keeps the run from starting; nothing where it has started already, or the model is what is wrong.
pub(crate) fn problem(config: &RunConfig) -> Option<Problem> {
    if config.lora.init.is_empty() || is_written(&RunFolder::new(&config.run_dir)) {
        return None;
    }
    let layout = Layout::read(config.model.path.as_ref()).ok()?;
    let error = read(config, &layout.projections).err()?;
    Some(Problem {
        origin: String::new(),
        key: "lora.init".to_owned(),
        problem: error.to_string(),
    })
}

/// Leaves in the run folder what the coordinator begins a run with, and learners may take for their reference. What is
/// there of a run stays: the adapter may be gone or another one by now.
///
/// # Errors
/// If the adapter does not fit, or the folder can't be written.
pub(crate) fn write(config: &RunConfig, folder: &RunFolder) -> anyhow::Result<()> {
    if config.lora.init.is_empty() || is_written(folder) {
        return Ok(());
    }
    let layout = Layout::read(config.model.path.as_ref());
    let flat = read(config, &layout.map_err(UsageError::from)?.projections)
        .map_err(|error| UsageError(format!("lora.init: {error}")))?;
    let version = exchange::adapter_to_bytes(&flat);
    let state = LearnerState::initial(flat).to_bytes();
    for (file, bytes) in [
        (CheckpointFile::State, state),
        (CheckpointFile::Version, version),
    ] {
        let path = folder.initial(file);
        let written = fs::create_dir_all(path.parent().unwrap_or(&path))
            .and_then(|()| write_whole(&path, &bytes, PUBLIC));
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Whether the run has begun and all that it began with is there. Without a record or a checkpoint, the files may be of an
/// attempt with other settings.
fn is_written(folder: &RunFolder) -> bool {
    let files = [CheckpointFile::State, CheckpointFile::Version].map(|file| folder.initial(file));
    let has_begun = folder.record().is_file() || folder.checkpoints().is_dir();
    has_begun && files.iter().all(|file| file.is_file())
}

fn read(config: &RunConfig, projections: &[Projection]) -> Result<Vec<f32>, InitialError> {
    initial::read(config.lora.init.as_ref(), &config.lora.adapter, projections)
}
