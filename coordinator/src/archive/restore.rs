//! Brings a run back from its newest whole checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use retouch_proto::files::{beside, put_in_place};
use retouch_proto::run_folder::{CheckpointFile, RunFolder};
use retouch_proto::{Iteration, RunConfig};

use super::{Archive, ArchiveError, Manifest, ManifestFile, RunIdentity, object};
use crate::machine::record::Checkpoint;
use crate::store::{self, Identity};

/// Brings the newest whole checkpoint at the run file's URL into a run folder that has nothing to continue from.
///
/// An incomplete one is reported, and its predecessor used: the run repeats what was lost.
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
    if url.is_empty() || !store::has_nothing(folder, &Identity { config, dataset })? {
        return Ok(());
    }
    let archive = Archive::open(url)?;
    let run = RunIdentity {
        config_toml: config.to_toml(),
        dataset: dataset.to_owned(),
    };
    let mut later = None;
    let mut torn = Vec::new();
    for iteration in archive.iterations().await?.into_iter().rev() {
        match archive
            .restore_with(iteration, &run, folder, &mut later)
            .await
        {
            Err(error @ ArchiveError::Torn { .. }) => {
                tracing::warn!(%iteration, %error, "a checkpoint can't be gone on from");
                torn.push(error);
            }
            Ok(()) => {
                tracing::info!(%iteration, url, "a checkpoint was brought back");
                if !torn.is_empty() {
                    let problems: Vec<String> = torn.iter().map(ToString::to_string).collect();
                    let problems = problems.join(", ");
                    store::note(
                        folder,
                        format!("{problems}: checkpoint {iteration} was brought back instead"),
                    )?;
                }
                return Ok(());
            }
            // Another run's, or a store that does not answer: to begin from nothing would be wrong in either case.
            Err(error) => return Err(error),
        }
    }
    torn.pop().map_or(Ok(()), Err)
}

/// A record that was fetched with a later checkpoint than the one that it is used for.
type LaterRecord = Option<Temporary>;

/// A file under another name than it will have; removed unless it is put in place.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn of(place: &Path) -> Self {
        Self {
            path: beside(place, "partial"),
        }
    }

    fn put(self, place: &Path) -> Result<(), ArchiveError> {
        put_in_place(&self.path, place).map_err(ArchiveError::io(place))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is not there any more if it was put in place; a folder with something in it stays.
        let _ = fs::remove_file(&self.path);
        let _ = self.path.parent().map(fs::remove_dir);
    }
}

/// What a record that was fetched says of a checkpoint; `place` is where people would look for it.
fn recorded(
    record: &Temporary,
    iteration: Iteration,
    place: String,
) -> Result<Checkpoint, ArchiveError> {
    let checkpoint = store::recorded_checkpoint(&record.path, iteration)?;
    checkpoint.map_err(|problem| ArchiveError::torn(place, problem))
}

impl Archive {
    /// Brings a checkpoint that has a record into a run folder.
    #[cfg(test)]
    pub(crate) async fn restore(
        &self,
        iteration: Iteration,
        run: &RunIdentity,
        folder: &RunFolder,
    ) -> Result<(), ArchiveError> {
        self.restore_with(iteration, run, folder, &mut None).await
    }

    /// Brings a checkpoint into a run folder. The folder has a record only once everything else is there.
    ///
    /// An older checkpoint has no record of its own (5). That of a `later` one says all that its own would, and more: a
    /// coordinator that opens it finds the files of this checkpoint alone, and takes the iterations after it back.
    ///
    /// # Errors
    /// If the checkpoint is another run's, or a file is missing or is not what the manifest says.
    async fn restore_with(
        &self,
        iteration: Iteration,
        run: &RunIdentity,
        folder: &RunFolder,
        later: &mut LaterRecord,
    ) -> Result<(), ArchiveError> {
        let manifest = self.manifest(iteration).await?;
        self.check_is_same(&manifest, run)?;
        let record_name = CheckpointFile::Record.name(iteration);
        let (records, others): (Vec<_>, Vec<_>) = manifest
            .files
            .iter()
            .partition(|file| file.name == record_name);
        let mut own = None;
        if let Some(file) = records.first() {
            match self.fetch_record(&manifest, file, folder).await {
                Ok((record, checkpoint)) => {
                    own = Some(checkpoint);
                    *later = Some(record);
                }
                Err(error @ ArchiveError::Torn { .. }) if later.is_some() => {
                    tracing::warn!(%iteration, %error, "a later record is used");
                }
                Err(error) => return Err(error),
            }
        }
        let place = self.place(&object(iteration, &record_name));
        let missing = || ArchiveError::torn(place.clone(), "it is missing".to_owned());
        let record = later.as_ref().ok_or_else(missing)?;
        let is_own = own.is_some();
        let checkpoint = match own {
            Some(checkpoint) => checkpoint,
            None => recorded(record, iteration, place)?,
        };
        self.check_is_complete(&manifest, &checkpoint)?;
        let mut fetched = Vec::new();
        for file in others {
            let place = folder.join(&file.name);
            let temporary = Temporary::of(&place);
            self.fetch(&manifest, file, &temporary).await?;
            fetched.push((temporary, place));
        }
        for (temporary, place) in fetched {
            temporary.put(&place)?;
        }
        store::put_record(&record.path, folder)?;
        if let Some(record) = later.take().filter(|_| is_own) {
            record.put(&folder.join(&record_name))?;
        }
        Ok(())
    }

    /// Fetches a checkpoint's record, and checks it as a whole: its hash only says that it is what was put away.
    async fn fetch_record(
        &self,
        manifest: &Manifest,
        file: &ManifestFile,
        folder: &RunFolder,
    ) -> Result<(Temporary, Checkpoint), ArchiveError> {
        let temporary = Temporary::of(&folder.join(&file.name));
        self.fetch(manifest, file, &temporary).await?;
        let place = self.place(&object(manifest.iteration, &file.name));
        let checkpoint = recorded(&temporary, manifest.iteration, place)?;
        Ok((temporary, checkpoint))
    }

    async fn fetch(
        &self,
        manifest: &Manifest,
        file: &ManifestFile,
        to: &Temporary,
    ) -> Result<(), ArchiveError> {
        let name = object(manifest.iteration, &file.name);
        self.objects.download(&name, file, &to.path).await
    }

    /// Whether a manifest names all that the record says there is.
    fn check_is_complete(
        &self,
        manifest: &Manifest,
        checkpoint: &Checkpoint,
    ) -> Result<(), ArchiveError> {
        for (hash, name) in checkpoint.files() {
            let named = manifest.files.iter().find(|file| file.name == name);
            let place = self.place(&object(manifest.iteration, &name));
            match named {
                None => {
                    let reason = "its manifest does not name it".to_owned();
                    return Err(ArchiveError::torn(place, reason));
                }
                Some(file) if file.blake3 != hash => {
                    return Err(ArchiveError::other_content(place, file.blake3, hash));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}
