//! Checkpoints at a URL: what a run needs to go on where its folder is not.
//!
//! A checkpoint there is a folder `checkpoint-<iteration>/`. Its files have the names that they have in
//! the run folder: the learner's state (adapter, Adam's moments, EMA, old policy, step), the version
//! that samples next, the exported adapter, and the snapshot of the record (data position, bans, the run
//! file with its seed).
//!
//! 1. A checkpoint is what its [`Manifest`] names, with length and hash. The manifest is written last and
//!    deleted first: without one there is no checkpoint, whatever else is there.
//! 2. Nothing is written or deleted where the newest checkpoint is another run's.
//! 3. A run folder has a record only once everything else of the checkpoint was found right and put in place.
//! 4. The run waits for none of it: a checkpoint that can't be put away is a warning, and the next one is tried.
//! 5. The newest two checkpoints have a copy of the record, here and in the run folder; with one in each, their sum would
//!    grow with the square of the run's length. An older one is restored with a later record, which says all that its
//!    own did.
//!
//! In reading order: [`Manifest`] says what a checkpoint is, `objects` moves files, [`Archive`] writes,
//! reads and deletes checkpoints, [`Keep`] says which stay, `keeper` does it while the run goes on, and
//! `restore` brings one back.

mod error;
mod keep;
mod keeper;
mod manifest;
mod objects;
mod restore;

use std::collections::BTreeMap;

use retouch_proto::run_folder::{CheckpointFile, RunFolder};
use retouch_proto::{ContentHash, Iteration};

pub use error::ArchiveError;
pub(crate) use keep::{Keep, Saved};
pub(crate) use keeper::{Keeper, KeeperOptions};
pub(crate) use manifest::{Manifest, ManifestFile, RunIdentity};
pub(crate) use restore::bring_back;

use crate::store::RECORDS_KEPT;
use objects::Objects;

const MANIFEST: &str = "manifest.json";
const FOLDER_PREFIX: &str = "checkpoint-";
/// A manifest is a run file and a few lines more.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// Checkpoints of one run at one URL.
#[derive(Debug)]
pub(crate) struct Archive {
    objects: Objects,
}

/// A file of the run folder that belongs to a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalFile {
    /// Its place in the run folder.
    pub name: String,
    /// The hash that it must have, if that is known.
    pub expected: Option<ContentHash>,
}

/// What there is of a checkpoint.
#[derive(Debug, Default)]
struct Contents {
    names: Vec<String>,
    is_finished: bool,
}

impl Archive {
    /// The archive at a `file:`, `s3:` or `gs:` URL. Credentials, region and endpoint are taken from
    /// the environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT`, ...,
    /// and `GOOGLE_SERVICE_ACCOUNT`, ..., as `object_store` names them.
    ///
    /// # Errors
    /// If the URL is of another kind, or what it needs is not in the environment.
    pub(crate) fn open(url: &str) -> Result<Self, ArchiveError> {
        Ok(Self {
            objects: Objects::open(url)?,
        })
    }

    /// An object as people would look for it.
    fn place(&self, object: &str) -> String {
        self.objects.place(object)
    }

    /// The URL, without a slash at its end.
    pub(crate) fn url(&self) -> &str {
        self.objects.url()
    }

    /// The finished checkpoints, oldest first.
    ///
    /// # Errors
    /// If the store can't be read. What is no checkpoint is passed over.
    pub(crate) async fn iterations(&self) -> Result<Vec<Iteration>, ArchiveError> {
        let contents = self.contents().await?.into_iter();
        let finished = contents.filter(|(_, contents)| contents.is_finished);
        Ok(finished.map(|(iteration, _)| iteration).collect())
    }

    /// What a checkpoint says about itself.
    ///
    /// # Errors
    /// If it is not there or makes no sense, or the store can't be read.
    pub(crate) async fn manifest(&self, iteration: Iteration) -> Result<Manifest, ArchiveError> {
        let name = object(iteration, MANIFEST);
        let bytes = self.objects.get(&name, MANIFEST_BYTES_MAX).await?;
        let manifest = Manifest::from_json(&bytes).and_then(|manifest| {
            let found = manifest.iteration;
            let wrong = format!("it is about iteration {found}");
            (found == iteration).then_some(manifest).ok_or(wrong)
        });
        manifest.map_err(|reason| self.objects.torn(&name, reason))
    }

    /// Refuses an archive whose newest checkpoint is another run's.
    ///
    /// # Errors
    /// If it is; or the store can't be read.
    pub(crate) async fn check_is_of(&self, run: &RunIdentity) -> Result<(), ArchiveError> {
        // It speaks for all: every one was written after this same check of the one before it.
        let Some(newest) = self.iterations().await?.pop() else {
            return Ok(());
        };
        match self.manifest(newest).await {
            Ok(manifest) => self.check_is_same(&manifest, run),
            // It says nothing about whose it is.
            Err(ArchiveError::Torn { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn check_is_same(&self, manifest: &Manifest, run: &RunIdentity) -> Result<(), ArchiveError> {
        let differences = manifest.run.differences(run);
        if differences.is_empty() {
            return Ok(());
        }
        Err(ArchiveError::Foreign {
            iteration: manifest.iteration,
            url: self.url().to_owned(),
            differences,
        })
    }

    /// Puts a checkpoint there: its files first, then what names them. What is there of the same
    /// iteration is replaced.
    ///
    /// # Errors
    /// If a file can't be read or is not what it must be, or the store does not take it.
    pub(crate) async fn write(
        &self,
        iteration: Iteration,
        run: RunIdentity,
        folder: &RunFolder,
        files: &[LocalFile],
    ) -> Result<Manifest, ArchiveError> {
        let mut manifest = Manifest::new(iteration, run);
        let about = object(iteration, MANIFEST);
        // First of all: while files are replaced, what is there is no checkpoint (1).
        self.objects.delete(&about).await?;
        for LocalFile { name, expected } in files {
            let path = folder.join(name);
            let file = ManifestFile {
                name: name.clone(),
                ..self.objects.upload(&object(iteration, name), &path).await?
            };
            if let Some(expected) = expected.filter(|expected| *expected != file.blake3) {
                let what = path.display().to_string();
                return Err(ArchiveError::other_content(what, file.blake3, expected));
            }
            manifest.files.push(file);
        }
        self.objects.put(&about, manifest.to_json().into()).await?;
        Ok(manifest)
    }

    /// Deletes the checkpoints up to `newest` that need not stay, what is left of those that were never finished, and the
    /// records of older ones (5). (Later ones are a torn future, which the run makes anew.)
    ///
    /// # Errors
    /// If the store refuses.
    pub(crate) async fn prune(
        &self,
        keep: &Keep,
        newest: Iteration,
        reward_mean: impl Fn(Iteration) -> Option<f64>,
    ) -> Result<(), ArchiveError> {
        let mut contents = self.contents().await?;
        contents.retain(|iteration, _| *iteration <= newest);
        let finished = contents.iter().filter(|(_, contents)| contents.is_finished);
        let saved = finished.map(|(iteration, _)| Saved {
            iteration: *iteration,
            reward_mean: reward_mean(*iteration),
        });
        let dropped = keep.dropped(&saved.collect::<Vec<_>>());
        let (kept, dropped): (Vec<_>, Vec<_>) =
            contents.into_iter().partition(|(iteration, contents)| {
                contents.is_finished && !dropped.contains(iteration)
            });
        for (iteration, contents) in dropped {
            self.delete(iteration, contents).await?;
        }
        for (iteration, contents) in kept.into_iter().rev().skip(RECORDS_KEPT) {
            self.delete_record(iteration, &contents).await?;
        }
        Ok(())
    }

    /// Deletes a checkpoint's record. At no time does its manifest name what is not there (1).
    async fn delete_record(
        &self,
        iteration: Iteration,
        contents: &Contents,
    ) -> Result<(), ArchiveError> {
        let name = CheckpointFile::Record.name(iteration);
        let record = object(iteration, &name);
        if !contents.names.contains(&record) {
            return Ok(());
        }
        let mut manifest = match self.manifest(iteration).await {
            Ok(manifest) => manifest,
            // It is left as it is, for who looks for what happened to it.
            Err(ArchiveError::Torn { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        manifest.files.retain(|file| file.name != name);
        let about = object(iteration, MANIFEST);
        self.objects.put(&about, manifest.to_json().into()).await?;
        self.objects.delete(&record).await
    }

    async fn delete(&self, iteration: Iteration, contents: Contents) -> Result<(), ArchiveError> {
        self.objects.delete(&object(iteration, MANIFEST)).await?;
        for name in contents.names {
            self.objects.delete(&name).await?;
        }
        Ok(())
    }

    /// Everything that is in folders of checkpoints, finished or not.
    async fn contents(&self) -> Result<BTreeMap<Iteration, Contents>, ArchiveError> {
        let mut found: BTreeMap<Iteration, Contents> = BTreeMap::new();
        for name in self.objects.list().await? {
            let Some((iteration, rest)) = parse(&name) else {
                continue;
            };
            let contents = found.entry(iteration).or_default();
            contents.is_finished |= rest == MANIFEST;
            contents.names.push(name);
        }
        Ok(found)
    }
}

/// The object of a checkpoint's file.
fn object(iteration: Iteration, name: &str) -> String {
    format!("{FOLDER_PREFIX}{iteration}/{name}")
}

/// Whose object it is, and the file's name.
fn parse(object: &str) -> Option<(Iteration, &str)> {
    let (number, name) = object.strip_prefix(FOLDER_PREFIX)?.split_once('/')?;
    Some((Iteration(number.parse().ok()?), name))
}

#[cfg(test)]
mod tests;
