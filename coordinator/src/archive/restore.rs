//! Brings a run back from its newest whole checkpoint.

use std::fs::{self, File};
use std::path::PathBuf;

use retouch_proto::run_folder::{CheckpointFile, RunFolder};
use retouch_proto::{Iteration, RunConfig};

use super::{Archive, ArchiveError, Manifest, RunIdentity, object};

/// Brings the newest whole checkpoint at the run file's URL into a run folder that has no record yet.
///
/// A torn one is told by name, and the one before it is taken: the run makes again what was lost.
///
/// # Errors
/// If the checkpoints are another run's, all of them are torn, or the store can't be read: whether there
/// is something to go on from must be known before the run begins.
pub(crate) async fn bring_back(
    config: &RunConfig,
    dataset: &str,
    folder: &RunFolder,
) -> Result<(), ArchiveError> {
    let url = &config.checkpoint.url;
    if url.is_empty() || folder.record().exists() {
        return Ok(());
    }
    let archive = Archive::open(url)?;
    let run = RunIdentity {
        config_toml: config.to_toml(),
        dataset: dataset.to_owned(),
    };
    let mut torn = Ok(());
    for iteration in archive.iterations().await?.into_iter().rev() {
        match archive.restore(iteration, &run, folder).await {
            Err(error @ ArchiveError::Torn { .. }) => {
                tracing::warn!(%iteration, %error, "a checkpoint can't be gone on from");
                torn = Err(error);
            }
            Ok(()) => {
                tracing::info!(%iteration, url, "a checkpoint was brought back");
                return Ok(());
            }
            // Another run's, or a store that does not answer: to begin from nothing would be wrong in either case.
            Err(error) => return Err(error),
        }
    }
    torn
}

impl Archive {
    /// Brings a checkpoint into a run folder. The folder has a record only once everything else is there.
    ///
    /// # Errors
    /// If the checkpoint is another run's, or a file is missing or is not what the manifest says.
    pub(crate) async fn restore(
        &self,
        iteration: Iteration,
        run: &RunIdentity,
        folder: &RunFolder,
    ) -> Result<(), ArchiveError> {
        let manifest = self.manifest(iteration).await?;
        self.check_is_same(&manifest, run)?;
        let fetched = self.fetch(&manifest, folder).await?;
        for (partial, place) in &fetched {
            fs::rename(partial, place).map_err(ArchiveError::io(place))?;
        }
        put_record(iteration, folder)
    }

    /// Fetches all files under other names; gives those and the names that they will have.
    async fn fetch(
        &self,
        manifest: &Manifest,
        folder: &RunFolder,
    ) -> Result<Vec<(PathBuf, PathBuf)>, ArchiveError> {
        let mut fetched = Vec::new();
        for file in &manifest.files {
            let place = folder.join(&file.name);
            let partial = folder.join(&format!("{}.partial", file.name));
            let name = object(manifest.iteration, &file.name);
            self.objects.download(&name, file, &partial).await?;
            fetched.push((partial, place));
        }
        Ok(fetched)
    }
}

/// The checkpoint's snapshot becomes the folder's record, whole or not at all.
fn put_record(iteration: Iteration, folder: &RunFolder) -> Result<(), ArchiveError> {
    let snapshot = folder.join(&CheckpointFile::Record.name(iteration));
    let record = folder.record();
    let partial = record.with_extension("partial");
    let put = fs::copy(&snapshot, &partial)
        .and_then(|_| File::open(&partial)?.sync_all())
        .and_then(|()| fs::rename(&partial, &record));
    put.map_err(ArchiveError::io(&record))
}
