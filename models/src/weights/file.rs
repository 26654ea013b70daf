use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::tensor::TensorInfo;
use serde::Deserialize;

use super::element::{convert, element_type};
use super::locate::{Found, locate};
use super::part::Part;
use super::{LoadError, read_config};

/// The weight file's name in folders that diffusers writes.
pub const DIFFUSERS_FILE: &str = "diffusion_pytorch_model.safetensors";
/// The weight file's name in folders that transformers writes.
pub const TRANSFORMERS_FILE: &str = "model.safetensors";

/// The named tensors of one safetensors file, of a folder's shards, or of bytes in memory.
///
/// Files are memory-mapped: a tensor's pages are read when the tensor is, and let go of then.
pub struct Weights {
    path: PathBuf,
    parts: Vec<Part>,
    part_of: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// The tensors of a model folder: `diffusion_pytorch_model.safetensors` or `model.safetensors`, or the shards that
    /// their `.index.json` lists; of a bf16 or fp16 variant where there is nothing else.
    ///
    /// # Errors
    /// If none of those files is there, or one can't be read.
    pub fn from_folder(folder: &Path) -> Result<Self, LoadError> {
        match locate(folder)? {
            Found::File(path) => Self::from_file(&path),
            Found::Index(path) => Self::from_shards(folder, &path),
        }
    }

    /// The tensors of one safetensors file.
    ///
    /// # Errors
    /// If it can't be read or is not a safetensors file.
    pub fn from_file(path: &Path) -> Result<Self, LoadError> {
        Ok(Self::from_parts(path, vec![Part::map(path)?]))
    }

    /// The tensors of a safetensors file in memory; `path` only names it in errors.
    ///
    /// # Errors
    /// If the bytes are not a safetensors file.
    pub fn from_bytes(
        path: &Path,
        bytes: impl AsRef<[u8]> + Send + Sync + 'static,
    ) -> Result<Self, LoadError> {
        Ok(Self::from_parts(path, vec![Part::memory(path, bytes)?]))
    }

    fn from_shards(folder: &Path, index: &Path) -> Result<Self, LoadError> {
        let ShardIndex { weight_map } = read_config(index)?;
        let mut shards: Vec<&String> = weight_map.values().collect();
        shards.sort();
        shards.dedup();
        // An index may not make its reader read outside of the folder.
        let inner = |name: &String| Path::new(name).file_name() == Some(name.as_ref());
        if let Some(name) = shards.iter().find(|name| !inner(name)) {
            let problem = format!("shard {name:?} is not the name of a file in the folder");
            return Err(LoadError::format(index, problem));
        }
        let missing: Vec<&str> = shards
            .iter()
            .filter(|name| !folder.join(name).is_file())
            .map(|name| name.as_str())
            .collect();
        if !missing.is_empty() {
            let count = format!(
                "{} of its {} shards are missing",
                missing.len(),
                shards.len()
            );
            return Err(LoadError::format(
                index,
                format!("{count}: {}", missing.join(", ")),
            ));
        }
        let parts = shards.into_iter().map(|name| Part::map(&folder.join(name)));
        Ok(Self::from_parts(folder, parts.collect::<Result<_, _>>()?))
    }

    fn from_parts(path: &Path, parts: Vec<Part>) -> Self {
        let mut part_of = BTreeMap::new();
        for (i, part) in parts.iter().enumerate() {
            part_of.extend(part.header.offset_keys().into_iter().map(|name| (name, i)));
        }
        Self {
            path: path.to_owned(),
            parts,
            part_of,
        }
    }

    /// The file or folder that the tensors come from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.part_of.keys().map(String::as_str)
    }

    /// The entries of the first file's `__metadata__`.
    pub fn metadata(&self) -> Option<&HashMap<String, String>> {
        self.parts.first()?.header.metadata().as_ref()
    }

    /// The shape of tensor `name`.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.entry(name)?.1.shape)
    }

    /// The element type of tensor `name` as files call it, such as `BF16`.
    pub fn dtype_name(&self, name: &str) -> Option<String> {
        Some(format!("{:?}", self.entry(name)?.1.dtype))
    }

    /// Bytes of tensor `name` in its file.
    pub fn byte_len(&self, name: &str) -> Option<usize> {
        let (start, end) = self.entry(name)?.1.data_offsets;
        Some(end - start)
    }

    /// The files that the tensors are in.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|part| part.path.as_path())
    }

    /// The file that tensor `name` is in, and where its values begin there, in bytes.
    pub(crate) fn place(&self, name: &str) -> Option<(&Path, u64)> {
        let (part, info) = self.entry(name)?;
        let start = part.data_start + info.data_offsets.0;
        Some((&part.path, start as u64))
    }

    /// Whether tensor `name`, if it is there, has floats, as all parameters are.
    pub(crate) fn is_float(&self, name: &str) -> bool {
        self.entry(name)
            .is_none_or(|(_, info)| element_type(info.dtype).is_some_and(|dtype| dtype.is_float()))
    }

    /// The values of tensor `name` as the file has them; `None` if it is not there or its element
    /// type is none of those that models are stored in.
    pub fn data(&self, name: &str) -> Option<TensorData> {
        let (part, info) = self.entry(name)?;
        let dtype = element_type(info.dtype)?;
        let (start, end) = info.data_offsets;
        let bytes = part.read(start..end, <[u8]>::to_vec);
        Some(TensorData::from_bytes_vec(bytes, info.shape.clone(), dtype))
    }

    /// The values of tensor `name` as `wanted`, with no copy of them in between; `None` as
    /// [`Weights::data`].
    pub fn data_as(&self, name: &str, wanted: DType) -> Option<TensorData> {
        let (part, info) = self.entry(name)?;
        let dtype = element_type(info.dtype)?;
        let (start, end) = info.data_offsets;
        match part.read(start..end, |bytes| convert(bytes, dtype, wanted)) {
            Some(values) => Some(TensorData::from_bytes(values, info.shape.clone(), wanted)),
            None => Some(self.data(name)?.convert_dtype(wanted)),
        }
    }

    /// Tensor `name` as f32 of rank `D`.
    ///
    /// # Errors
    /// If it is missing or of another rank.
    pub fn tensor<const D: usize>(
        &self,
        name: &str,
        device: &Device,
    ) -> Result<Tensor<D>, LoadError> {
        let data = self.of_rank(name, D, self.data_as(name, DType::F32))?;
        Ok(Tensor::from_data(data, (device, DType::F32)))
    }

    /// Tensor `name` as integers of rank `D`, for golden cases.
    #[cfg(test)]
    pub(crate) fn int_tensor<const D: usize>(
        &self,
        name: &str,
        device: &Device,
    ) -> Result<Tensor<D, burn::tensor::Int>, LoadError> {
        let data = self.of_rank(name, D, self.data(name))?;
        Ok(Tensor::from_data(data, device))
    }

    fn of_rank(
        &self,
        name: &str,
        rank: usize,
        data: Option<TensorData>,
    ) -> Result<TensorData, LoadError> {
        let data = data.ok_or_else(|| {
            LoadError::format(&self.path, format!("no readable tensor is named {name}"))
        })?;
        if data.rank() == rank {
            return Ok(data);
        }
        let shape = data.shape().as_slice().to_vec();
        Err(LoadError::format(
            &self.path,
            format!("{name} has shape {shape:?}, expected {rank} dimensions"),
        ))
    }

    fn entry(&self, name: &str) -> Option<(&Part, &TensorInfo)> {
        let part = &self.parts[*self.part_of.get(name)?];
        Some((part, part.header.info(name)?))
    }
}
