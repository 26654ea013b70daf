use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};
use serde::Deserialize;

use super::LoadError;

/// The weight file's name in folders that diffusers writes.
pub const DIFFUSERS_FILE: &str = "diffusion_pytorch_model.safetensors";
/// The weight file's name in folders that transformers writes.
pub const TRANSFORMERS_FILE: &str = "model.safetensors";

/// The named tensors of one safetensors file, of a folder's shards, or of bytes in memory.
///
/// Files are memory-mapped: a tensor's pages are read when the tensor is.
pub struct Weights {
    path: PathBuf,
    parts: Vec<Part>,
    part_of: BTreeMap<String, usize>,
}

struct Part {
    bytes: Box<dyn AsRef<[u8]> + Send + Sync>,
    data_start: usize,
    header: Metadata,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// The tensors of a model folder: `diffusion_pytorch_model.safetensors` or
    /// `model.safetensors`, or the shards that their `.index.json` lists.
    ///
    /// # Errors
    /// If none of those files is there, or one can't be read.
    pub fn from_folder(folder: &Path) -> Result<Self, LoadError> {
        for name in [DIFFUSERS_FILE, TRANSFORMERS_FILE] {
            let single = folder.join(name);
            if single.is_file() {
                return Self::from_file(&single);
            }
            let index = folder.join(format!("{name}.index.json"));
            if index.is_file() {
                return Self::from_shards(folder, &index);
            }
        }
        Err(LoadError::format(
            folder,
            format!(
                "no weights: neither {DIFFUSERS_FILE} nor {TRANSFORMERS_FILE} (nor their .index.json) is there"
            ),
        ))
    }

    /// The tensors of one safetensors file.
    ///
    /// # Errors
    /// If it can't be read or is not a safetensors file.
    pub fn from_file(path: &Path) -> Result<Self, LoadError> {
        Self::from_parts(path, vec![Part::map(path)?])
    }

    /// The tensors of a safetensors file in memory; `path` only names it in errors.
    ///
    /// # Errors
    /// If the bytes are not a safetensors file.
    pub fn from_bytes(
        path: &Path,
        bytes: impl AsRef<[u8]> + Send + Sync + 'static,
    ) -> Result<Self, LoadError> {
        Self::from_parts(path, vec![Part::new(path, Box::new(bytes))?])
    }

    fn from_shards(folder: &Path, index: &Path) -> Result<Self, LoadError> {
        let ShardIndex { weight_map } = super::read_config(index)?;
        let mut shards: Vec<&String> = weight_map.values().collect();
        shards.sort();
        shards.dedup();
        let parts = shards.into_iter().map(|name| {
            // An index may not make its reader read outside of the folder.
            if Path::new(name).file_name() != Some(name.as_ref()) {
                let problem = format!("shard {name:?} is not the name of a file in the folder");
                return Err(LoadError::format(index, problem));
            }
            Part::map(&folder.join(name))
        });
        Self::from_parts(folder, parts.collect::<Result<_, _>>()?)
    }

    fn from_parts(path: &Path, parts: Vec<Part>) -> Result<Self, LoadError> {
        let mut part_of = BTreeMap::new();
        for (i, part) in parts.iter().enumerate() {
            part_of.extend(part.header.offset_keys().into_iter().map(|name| (name, i)));
        }
        Ok(Self {
            path: path.to_owned(),
            parts,
            part_of,
        })
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

    /// The values of tensor `name` as the file has them; `None` if it is not there or its element
    /// type is none of those that models are stored in.
    pub fn data(&self, name: &str) -> Option<TensorData> {
        let (part, info) = self.entry(name)?;
        let (start, end) = info.data_offsets;
        let bytes = &(*part.bytes).as_ref()[part.data_start..][start..end];
        let dtype = element_type(info.dtype)?;
        Some(TensorData::from_bytes_vec(
            bytes.to_vec(),
            info.shape.clone(),
            dtype,
        ))
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
        let data = self.data_of_rank(name, D)?.convert_dtype(DType::F32);
        Ok(Tensor::from_data(data, (device, DType::F32)))
    }

    /// Tensor `name` as integers of rank `D`.
    ///
    /// # Errors
    /// If it is missing or of another rank.
    pub fn int_tensor<const D: usize>(
        &self,
        name: &str,
        device: &Device,
    ) -> Result<Tensor<D, Int>, LoadError> {
        Ok(Tensor::from_data(self.data_of_rank(name, D)?, device))
    }

    fn data_of_rank(&self, name: &str, rank: usize) -> Result<TensorData, LoadError> {
        let data = self.data(name).ok_or_else(|| {
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

impl Part {
    fn map(path: &Path) -> Result<Self, LoadError> {
        let file = File::open(path).map_err(|source| LoadError::io(path, source))?;
        // SAFETY: the map is read-only, and weight files are replaced by renaming, never written
        // in place, so its pages do not change under us.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| LoadError::io(path, source))?;
        Self::new(path, Box::new(map))
    }

    fn new(path: &Path, bytes: Box<dyn AsRef<[u8]> + Send + Sync>) -> Result<Self, LoadError> {
        let (header_len, header) = SafeTensors::read_metadata((*bytes).as_ref())
            .map_err(|source| LoadError::format(path, source))?;
        Ok(Self {
            bytes,
            // The header is preceded by its own length in eight bytes.
            data_start: header_len + 8,
            header,
        })
    }
}

fn element_type(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::U8 => DType::U8,
        _ => return None,
    })
}
