//! Folders of models.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::DType;
use retouch_models::weights::{LoadError, TensorMap, Weights, write_safetensors};

use super::TrainError;

/// Copies a folder with all that is in it, over what may be there.
pub(super) fn copy_folder(from: &Path, to: &Path) -> Result<(), TrainError> {
    let io = TrainError::at;
    fs::create_dir_all(to).map_err(io(to))?;
    for entry in fs::read_dir(from).map_err(io(from))? {
        let path = entry.map_err(io(from))?.path();
        let copy = to.join(path.file_name().expect("entries have names"));
        if path.is_dir() {
            copy_folder(&path, &copy)?;
        } else {
            fs::copy(&path, &copy).map_err(io(&path))?;
        }
    }
    Ok(())
}

/// Gives a finished folder its name, so that a half-written one never has it.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), TrainError> {
    fs::rename(from, to).map_err(TrainError::at(to))
}

/// Stores all weights below a folder as f16: half the size, and closer to the values than bf16.
pub(super) fn halve_weights(folder: &Path) -> Result<(), TrainError> {
    let io = TrainError::at;
    for entry in fs::read_dir(folder).map_err(io(folder))? {
        let path = entry.map_err(io(folder))?.path();
        if path.is_dir() {
            halve_weights(&path)?;
        } else if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            halve_file(&path)?;
        }
    }
    Ok(())
}

fn halve_file(path: &Path) -> Result<(), LoadError> {
    let weights = Weights::from_file(path)?;
    let half = |name: &str| {
        let data = weights.data(name).expect("a name of this file");
        (name.to_owned(), data.convert_dtype(DType::F16))
    };
    let tensors: TensorMap = weights.names().map(half).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(path, &tensors, &metadata)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use retouch_models::editor::{Editor, Parts};

    use super::*;
    use crate::editor;

    #[test]
    fn halved_weights_are_nearly_the_same() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        editor::init(&from, 1).expect("a written editor");
        copy_folder(&from, &to).expect("a copy");
        halve_weights(&to).expect("half the weights");
        let file = "transformer/diffusion_pytorch_model.safetensors";
        let size = |folder: &Path| fs::metadata(folder.join(file)).expect("a file").len();
        assert!(size(&to) < size(&from) * 11 / 20);
        let values = |folder: &Path| {
            let weights = Weights::from_file(&folder.join(file)).expect("weights");
            let values = weights.tensor::<2>("proj_out.weight", &Device::flex());
            values.expect("the last layer")
        };
        let error = (values(&from) - values(&to))
            .abs()
            .max()
            .into_scalar::<f32>();
        assert!(error > 0.0 && error < 1e-3, "{error}");
        Editor::load(&to, &Device::flex(), Parts::All).expect("an editor");
    }
}
