use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData};
use serde::Serialize;

use super::{LoadError, Names, write_config};

/// Tensors by name, in the order in which they are written.
pub type TensorMap = BTreeMap<String, TensorData>;

/// The parameters of `module` under their checkpoint names.
pub fn tensors_of<M: Module>(module: &M, names: &Names) -> TensorMap {
    let mut collector = Collector {
        names,
        path: Vec::new(),
        tensors: TensorMap::new(),
    };
    module.visit(&mut collector);
    collector.tensors
}

/// Saves a module as published checkpoints are: `config.json` and one weight file, which is
/// [`DIFFUSERS_FILE`](super::DIFFUSERS_FILE) or [`TRANSFORMERS_FILE`](super::TRANSFORMERS_FILE).
///
/// # Errors
/// If the folder can't be written.
pub(super) fn save_folder<M: Module, C: Serialize>(
    folder: &Path,
    config: &C,
    module: &M,
    names: &Names,
    file: &str,
) -> Result<(), LoadError> {
    fs::create_dir_all(folder).map_err(|source| LoadError::io(folder, source))?;
    write_config(&folder.join("config.json"), config)?;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&folder.join(file), &tensors_of(module, names), &metadata)
}

/// Writes a safetensors file, whole or not at all.
///
/// # Errors
/// If it can't be written.
pub fn write_safetensors(
    path: &Path,
    tensors: &TensorMap,
    metadata: &BTreeMap<String, String>,
) -> Result<(), LoadError> {
    let partial = path.with_extension("safetensors.partial");
    let write = || -> io::Result<()> {
        let mut file = BufWriter::new(fs::File::create(&partial)?);
        write_to(&mut file, tensors, metadata)?;
        file.into_inner()?.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|source| LoadError::io(path, source))
}

/// The bytes of a safetensors file; equal tensors and metadata give equal bytes.
pub fn to_safetensors(tensors: &TensorMap, metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_to(&mut bytes, tensors, metadata).expect("writing to memory does not fail");
    bytes
}

/// The `safetensors` crate orders `__metadata__` by a random hash, so its files can't be content
/// addressed; the format is a length, a JSON header and the tensors one after another.
fn write_to(
    out: &mut impl Write,
    tensors: &TensorMap,
    metadata: &BTreeMap<String, String>,
) -> io::Result<()> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    }
    // Wide elements first keeps every tensor aligned to its element size.
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(name, data)| (std::cmp::Reverse(data.dtype().size()), *name));
    let mut offset = 0;
    for (name, data) in &order {
        let end = offset + data.as_bytes().len();
        let entry = serde_json::json!({
            "dtype": element_name(data.dtype()),
            "shape": data.shape().as_slice(),
            "data_offsets": [offset, end],
        });
        header.insert((*name).clone(), entry);
        offset = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    order
        .iter()
        .try_for_each(|(_, data)| out.write_all(data.as_bytes()))
}

fn element_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "F64",
        DType::F32 | DType::Flex32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::U8 => "U8",
        other => panic!("{other:?} tensors are not stored; convert them first"),
    }
}

struct Collector<'a> {
    names: &'a Names,
    path: Vec<String>,
    tensors: TensorMap,
}

impl ModuleVisitor for Collector<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.names.key(&self.path.join("."));
        self.tensors.insert(name, param.val().into_data());
    }
}
