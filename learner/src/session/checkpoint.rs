//! Makes a state durable: whole or not at all (A8).

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use retouch_models::{
    lora::{LoraAdapter, LoraConfig, Projection, save_diffusers, save_peft},
    weights::LoadError,
};
use retouch_proto::files::is_full;
use retouch_proto::run_folder::{CheckpointFile, FINAL_ADAPTER, LATEST_ADAPTER, RunFolder};
use retouch_proto::{ContentHash, Iteration};
use thiserror::Error;

use crate::card::Card;

/// The file of an adapter folder whose hash names the folder.
const ADAPTER_FILE: &str = "adapter_model.safetensors";

/// A checkpoint that could not be written.
#[derive(Debug, Error)]
pub(super) enum CheckpointError {
    /// A file or folder.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The exported adapter.
    #[error("cannot export the adapter: {0}")]
    Adapter(#[from] LoadError),
}

impl CheckpointError {
    /// Whether there is no space left for it.
    pub(super) fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::Adapter(LoadError::Io { source, .. }) => {
                is_full(source)
            }
            Self::Adapter(_) => false,
        }
    }
}

/// What a checkpoint holds.
#[derive(Debug)]
pub(super) struct Checkpoint<'a> {
    pub(super) iteration: Iteration,
    pub(super) state: &'a [u8],
    pub(super) version: &'a [u8],
    /// The policies before it that are still to sample, with the iterations that published them.
    pub(super) earlier: Vec<(Iteration, &'a [u8])>,
    pub(super) ema: &'a LoraAdapter,
    pub(super) lora: &'a LoraConfig,
    pub(super) projections: &'a [Projection],
    /// What the adapter's folder says of it.
    pub(super) card: Card,
    /// Whether nothing is to be trained after it.
    pub(super) is_last: bool,
}

/// Writes `checkpoints/<iteration>/` and `adapters/<hash>/` of the EMA, whose hash it
/// gives. What is there already under these names is replaced.
pub(super) fn write(
    run_dir: &Path,
    checkpoint: &Checkpoint<'_>,
) -> Result<ContentHash, CheckpointError> {
    let folder = RunFolder::new(run_dir);
    let hash = export(&folder.adapters(), checkpoint)?;
    let partial = fresh_folder(&folder.checkpoints())?;
    let file = |file: CheckpointFile| partial.join(file.file_name());
    write_file(&file(CheckpointFile::State), checkpoint.state)?;
    write_file(&file(CheckpointFile::Version), checkpoint.version)?;
    for (iteration, policy) in &checkpoint.earlier {
        write_file(&file(CheckpointFile::Earlier(*iteration)), policy)?;
    }
    put_in_place(&partial, &folder.checkpoint(checkpoint.iteration))?;
    tracing::info!(iteration = %checkpoint.iteration, adapter = %hash.short(), "checkpoint written");
    Ok(hash)
}

/// Writes the EMA as a peft folder with diffusers' file beside; the hash is that of
/// peft's weight file.
fn export(parent: &Path, checkpoint: &Checkpoint<'_>) -> Result<ContentHash, CheckpointError> {
    let Checkpoint {
        ema,
        lora,
        projections,
        card,
        ..
    } = checkpoint;
    let partial = fresh_folder(parent)?;
    save_peft(&partial, ema, lora, projections)?;
    save_diffusers(&partial, ema, lora, projections)?;
    card.write(&partial)?;
    let weights = partial.join(ADAPTER_FILE);
    let bytes = fs::read(&weights).map_err(|source| CheckpointError::Io {
        path: weights,
        source,
    })?;
    let hash = ContentHash::of(&bytes);
    put_in_place(&partial, &parent.join(hash.to_string()))?;
    // Names for people, whose absence costs the run nothing.
    if let Err(error) = name_newest(parent, &hash.to_string(), checkpoint.is_last) {
        tracing::warn!(%error, "the links latest and final in {} are not up to date", parent.display());
    }
    Ok(hash)
}

/// Has `latest` lead to the adapter, and `final` too if it is the run's last; else there is no final one any more.
fn name_newest(adapters: &Path, name: &str, is_last: bool) -> io::Result<()> {
    link(adapters, name, LATEST_ADAPTER)?;
    match is_last {
        true => link(adapters, name, FINAL_ADAPTER),
        false => match fs::remove_file(adapters.join(FINAL_ADAPTER)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

/// A link that is there at every moment, replaced as a whole.
fn link(folder: &Path, to: &str, name: &str) -> io::Result<()> {
    let fresh = folder.join(format!(".{name}"));
    let _ = fs::remove_file(&fresh);
    std::os::unix::fs::symlink(to, &fresh)?;
    fs::rename(fresh, folder.join(name))
}

/// An empty folder beside the one it will become; what a killed process left is
/// deleted.
fn fresh_folder(parent: &Path) -> Result<PathBuf, CheckpointError> {
    let folder = parent.join(".partial");
    let made = match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir_all(&folder),
    };
    made.map_err(|source| CheckpointError::Io {
        path: folder.clone(),
        source,
    })?;
    Ok(folder)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Renames the finished folder into place, and has the disk know of it.
fn put_in_place(partial: &Path, folder: &Path) -> Result<(), CheckpointError> {
    let placed = sync(partial).and_then(|()| {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(partial, folder)?;
        folder.parent().map_or(Ok(()), sync)
    });
    placed.map_err(|source| CheckpointError::Io {
        path: folder.to_owned(),
        source,
    })
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use retouch_proto::RunConfig;

    use super::*;
    use crate::card::CARD_FILE;

    fn write_to(run_dir: &Path, iteration: u32, state: &[u8]) -> ContentHash {
        let projections = [Projection {
            name: "blocks.0.to_q".into(),
            in_features: 3,
            out_features: 2,
        }];
        let lora = LoraConfig {
            rank: 2,
            alpha: 4.0,
            target_modules: vec!["to_q".into()],
        };
        let ema = LoraAdapter::init(&lora, &projections, 1, &Device::flex());
        let iteration = Iteration(iteration);
        let checkpoint = Checkpoint {
            iteration,
            state,
            version: b"v",
            earlier: vec![(Iteration(1), b"earlier")],
            ema: &ema,
            lora: &lora,
            projections: &projections,
            card: Card::of_run(&RunConfig::default(), iteration),
            is_last: iteration == Iteration(9),
        };
        write(run_dir, &checkpoint).unwrap()
    }

    #[test]
    fn same_adapter_has_the_same_name_and_leftovers_do_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::new(folder.path());
        let leftover = run.checkpoints().join(".partial");
        fs::create_dir_all(&leftover).unwrap();
        fs::write(leftover.join("rubbish"), b"half").unwrap();
        let first = write_to(folder.path(), 1, b"one");
        assert_eq!(write_to(folder.path(), 2, b"two"), first);
        assert_eq!(write_to(folder.path(), 2, b"again"), first);
        let checkpoint = run.checkpoint(Iteration(2));
        assert_eq!(
            fs::read(checkpoint.join(CheckpointFile::State.file_name())).unwrap(),
            b"again"
        );
        let earlier = CheckpointFile::Earlier(Iteration(1)).file_name();
        assert_eq!(fs::read(checkpoint.join(earlier)).unwrap(), b"earlier");
        assert_eq!(fs::read_dir(&checkpoint).unwrap().count(), 3);
        let adapter = run.adapter(&first.to_string());
        assert_eq!(
            ContentHash::of(&fs::read(adapter.join(ADAPTER_FILE)).unwrap()),
            first
        );
        assert!(adapter.join("adapter_config.json").is_file());
        assert!(adapter.join("pytorch_lora_weights.safetensors").is_file());
        assert!(adapter.join(CARD_FILE).is_file());
    }

    #[test]
    fn links_lead_to_the_newest_adapter_and_to_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let adapters = RunFolder::new(folder.path()).adapters();
        let leads_to = |link: &str| fs::read_link(adapters.join(link)).ok();
        let hash = PathBuf::from(write_to(folder.path(), 8, b"8").to_string());
        assert_eq!(
            (leads_to(LATEST_ADAPTER), leads_to(FINAL_ADAPTER)),
            (Some(hash.clone()), None)
        );
        write_to(folder.path(), 9, b"9");
        assert_eq!(
            (leads_to(LATEST_ADAPTER), leads_to(FINAL_ADAPTER)),
            (Some(hash.clone()), Some(hash))
        );
        // The run was made longer.
        write_to(folder.path(), 10, b"10");
        assert_eq!(leads_to(FINAL_ADAPTER), None);
        assert!(adapters.join(LATEST_ADAPTER).join(ADAPTER_FILE).is_file());
    }

    #[test]
    fn unwritable_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let adapters = RunFolder::new(folder.path()).adapters();
        fs::write(&adapters, b"a file in the way").unwrap();
        let error = fresh_folder(&adapters).unwrap_err().to_string();
        assert!(error.contains("adapters"), "{error}");
    }
}
