//! Golden cases of the reference implementations, for tests; `tools/parity` makes them.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor};

use crate::weights::Weights;

/// A case folder: configuration, weights, inputs and expected outputs.
pub(crate) struct Case {
    folder: PathBuf,
    io: Weights,
}

impl Case {
    /// All cases of a component that were computed in f32.
    pub(crate) fn all(component: &str) -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/parity/cases");
        let prefix = format!("{component}__");
        let mut folders: Vec<PathBuf> = std::fs::read_dir(&folder)
            .expect("the cases are in the repository")
            .map(|entry| entry.expect("a readable folder").path())
            .filter(|path| {
                let name = path.file_name().and_then(|name| name.to_str());
                name.is_some_and(|name| name.starts_with(&prefix))
            })
            .collect();
        folders.sort();
        assert!(!folders.is_empty(), "no cases of {component} in {folder:?}");
        let cases = folders.into_iter().map(Self::open);
        cases
            .filter(|case| case.optional_parameter("dtype").is_none())
            .collect()
    }

    fn open(folder: PathBuf) -> Self {
        let io = Weights::from_file(&folder.join("io.safetensors")).expect("readable tensors");
        Self { folder, io }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// The value of a line `key = value` of case.toml.
    pub(crate) fn parameter(&self, key: &str) -> String {
        self.optional_parameter(key)
            .unwrap_or_else(|| panic!("no {key} in {:?}", self.folder))
    }

    /// The value of a line `key = value` of case.toml, if there is one.
    pub(crate) fn optional_parameter(&self, key: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.path("case.toml")).expect("a readable case.toml");
        let mut pairs = text.lines().filter_map(|line| line.split_once(" = "));
        let pair = pairs.find(|(name, _)| *name == key);
        pair.map(|(_, value)| value.to_owned())
    }

    pub(crate) fn weights(&self) -> Weights {
        Weights::from_file(&self.path("weights.safetensors")).expect("readable weights")
    }

    pub(crate) fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        let data = self
            .io
            .data(name)
            .unwrap_or_else(|| panic!("no {name} in {:?}", self.folder));
        Tensor::from_data(data, &Device::flex())
    }

    pub(crate) fn int_tensor<const D: usize>(&self, name: &str) -> Tensor<D, Int> {
        let tensor = self.io.int_tensor(name, &Device::flex());
        tensor.expect("a tensor of the case")
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.io.shape(name).is_some()
    }

    pub(crate) fn shape(&self, name: &str) -> Vec<usize> {
        self.io.shape(name).expect("a tensor of the case").to_vec()
    }

    pub(crate) fn integers(&self, name: &str) -> Vec<i64> {
        let data = self.io.data(name).expect("a tensor of the case");
        data.convert::<i64>().try_to_vec().expect("integers")
    }

    /// Fails unless `found` is within `tolerance` of the expected output, relative to its largest value.
    pub(crate) fn check<const D: usize>(&self, name: &str, found: Tensor<D>, tolerance: f32) {
        let expected = self.tensor::<D>(name);
        assert_eq!(found.dims(), expected.dims(), "{name} of {:?}", self.folder);
        let scale = expected.clone().abs().max().into_scalar::<f32>();
        let error = (found - expected).abs().max().into_scalar::<f32>() / scale;
        println!("{} {name}: {error:.2e}", self.folder.display());
        assert!(
            error <= tolerance,
            "{name} of {:?}: {error:.2e}",
            self.folder
        );
    }
}
