use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use serde_json::Value;

use super::Layout;
use super::folder::INDEX_FILE;
use crate::lora::{LoraAdapter, Projection, merged};
use crate::weights::{LoadError, Weights, put_folder, read_config};

const TRANSFORMER: &str = "transformer";

/// Endings of files with weights.
const WEIGHTS: [&str; 7] = ["safetensors", "bin", "ckpt", "pt", "pth", "gguf", "onnx"];

/// Writes a copy of a diffusers pipeline folder in which an adapter's products are added to the transformer's weights:
/// W + scale B A, in the element types and the shards that the folder has. Parts that are no part of the pipeline, such
/// as a second set of weights beside it, are left out.
///
/// The adapter is one for the folder's projections, on the CPU. `output` must be new or empty; it is there whole or not at all.
///
/// # Errors
/// If the folder can't be read or the copy not written, or a weight that the adapter changes is not there as it should be.
pub fn merge_pipeline(
    folder: &Path,
    adapter: &LoraAdapter,
    output: &Path,
) -> Result<(), LoadError> {
    let layout = Layout::read(folder)?;
    let weights = Weights::from_folder(&folder.join(TRANSFORMER))?;
    let merge = Merge {
        weights,
        adapter,
        projections: &layout.projections,
    };
    merge.check()?;
    put_folder(output, |copy| {
        copy_pipeline(folder, &merge.weights, copy)?;
        merge.write(&copy.join(TRANSFORMER))
    })
}

struct Merge<'a> {
    weights: Weights,
    adapter: &'a LoraAdapter,
    projections: &'a [Projection],
}

impl Merge<'_> {
    /// Slots and names of the weights that change.
    fn targets(&self) -> impl Iterator<Item = (usize, String)> {
        let targeted = |(slot, projection): (usize, &Projection)| {
            self.adapter.pair(slot)?;
            Some((slot, format!("{}.weight", projection.name)))
        };
        self.projections.iter().enumerate().filter_map(targeted)
    }

    fn check(&self) -> Result<(), LoadError> {
        for (slot, name) in self.targets() {
            let projection = &self.projections[slot];
            let expected = [projection.out_features, projection.in_features];
            if self.weights.shape(&name) != Some(&expected) {
                let found = self.weights.shape(&name);
                let problem = format!("{name} has shape {found:?}, expected {expected:?}");
                return Err(LoadError::format(self.weights.path(), problem));
            }
            let is_float = |dtype: &String| ["F32", "F16", "BF16"].contains(&dtype.as_str());
            let dtype = self.weights.dtype_name(&name);
            if !dtype.as_ref().is_some_and(is_float) {
                let problem = format!("{name} is stored as {dtype:?}, expected F32, F16 or BF16");
                return Err(LoadError::format(self.weights.path(), problem));
            }
        }
        Ok(())
    }

    /// Overwrites the weights that change in a copy of the transformer's folder.
    fn write(&self, copy: &Path) -> Result<(), LoadError> {
        let mut files: BTreeMap<PathBuf, File> = BTreeMap::new();
        for source in self.weights.files() {
            let path = copy.join(source.file_name().unwrap_or_default());
            let file = OpenOptions::new().write(true).open(&path);
            let file = file.map_err(|source| LoadError::io(&path, source))?;
            files.insert(source.to_owned(), file);
        }
        for (slot, name) in self.targets() {
            let (source, start) = self.weights.place(&name).expect("checked before");
            let file = files.get_mut(source).expect("all files are open");
            let bytes = self.merged(slot, &name);
            let written = file
                .seek(SeekFrom::Start(start))
                .and_then(|_| file.write_all(&bytes));
            written.map_err(|source| LoadError::io(copy, source))?;
        }
        let synced = files.values().try_for_each(File::sync_all);
        synced.map_err(|source| LoadError::io(copy, source))
    }

    /// A weight with its update, in the file's element type.
    fn merged(&self, slot: usize, name: &str) -> Vec<u8> {
        let data = self.weights.data(name).expect("checked before");
        let pair = self.adapter.pair(slot).expect("a target has factors");
        let dtype = data.dtype();
        let weight = Tensor::<2>::from_data(data, (&Device::flex(), dtype));
        let weight = merged(weight, pair, self.adapter.scale());
        weight.into_data().as_bytes().to_vec()
    }
}

/// Copies the parts of a pipeline that its index lists, and what lies beside them, such as its licence. Of weights, only
/// those of the transformer that are read go along with the parts.
fn copy_pipeline(folder: &Path, weights: &Weights, copy: &Path) -> Result<(), LoadError> {
    let index: BTreeMap<String, Value> = read_config(&folder.join(INDEX_FILE))?;
    let used: Vec<&Path> = weights.files().collect();
    let beside = |path: &Path| path.is_file() && !is_weights(path);
    copy_files(folder, copy, &beside)?;
    for part in index.keys().filter(|part| folder.join(part).is_dir()) {
        let in_part =
            |path: &Path| part != TRANSFORMER || used.contains(&path) || !is_weights(path);
        copy_files(&folder.join(part), &copy.join(part), &in_part)?;
    }
    Ok(())
}

fn is_weights(path: &Path) -> bool {
    let ending = path.extension().and_then(OsStr::to_str);
    ending.is_some_and(|ending| WEIGHTS.contains(&ending))
}

/// Copies the files in a folder and below it that `wanted` takes; links are followed, and hidden names left out.
fn copy_files(folder: &Path, copy: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<(), LoadError> {
    let io = |source: io::Error| LoadError::io(folder, source);
    fs::create_dir_all(copy).map_err(|source| LoadError::io(copy, source))?;
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let (path, name) = (entry.path(), entry.file_name());
        if name.as_encoded_bytes().starts_with(b".") || !wanted(&path) {
            continue;
        }
        let to = copy.join(&name);
        if path.is_dir() {
            copy_files(&path, &to, wanted)?;
            continue;
        }
        let copied = fs::copy(&path, &to).and_then(|_| writable(&to));
        copied.map_err(|source| LoadError::io(&path, source))?;
    }
    Ok(())
}

/// Caches of downloads have their files read-only, and so would the copy.
fn writable(path: &Path) -> io::Result<()> {
    let mut permissions = fs::metadata(path)?.permissions();
    permissions.set_mode(permissions.mode() | 0o200);
    fs::set_permissions(path, permissions)
}
