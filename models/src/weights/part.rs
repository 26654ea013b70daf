use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};
use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, SafeTensors};
use serde_json::Value;

use super::LoadError;
use super::foreign::no_tensors;

/// One safetensors file: its header, and where its tensors are.
pub(super) struct Part {
    source: Source,
    pub(super) path: PathBuf,
    pub(super) data_start: usize,
    pub(super) header: Metadata,
}

enum Source {
    Map(Mmap),
    Memory(Box<dyn AsRef<[u8]> + Send + Sync>),
}

impl Source {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Map(map) => map,
            Self::Memory(bytes) => (**bytes).as_ref(),
        }
    }
}

impl Part {
    /// Maps a file; a tensor's pages are read when the tensor is.
    pub(super) fn map(path: &Path) -> Result<Self, LoadError> {
        let file = File::open(path).map_err(|source| LoadError::io(path, source))?;
        // SAFETY: the map is read-only, and weight files are replaced by renaming, never written
        // in place, so its pages do not change under us.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| LoadError::io(path, source))?;
        Self::new(path, Source::Map(map))
    }

    /// Takes a file's bytes; `path` only names them in errors.
    pub(super) fn memory(
        path: &Path,
        bytes: impl AsRef<[u8]> + Send + Sync + 'static,
    ) -> Result<Self, LoadError> {
        Self::new(path, Source::Memory(Box::new(bytes)))
    }

    fn new(path: &Path, source: Source) -> Result<Self, LoadError> {
        let bytes = source.bytes();
        let (header_len, header) = SafeTensors::read_metadata(bytes)
            .map_err(|error| LoadError::format(path, reason(&error, bytes)))?;
        Ok(Self {
            source,
            path: path.to_owned(),
            // The header is preceded by its own length in eight bytes.
            data_start: header_len + 8,
            header,
        })
    }

    /// Hands the bytes of a tensor to `read`, and lets go of the file's pages then: a mapped page
    /// counts as this process's memory as long as it is mapped, and the tensor has its copy.
    pub(super) fn read<T>(&self, range: Range<usize>, read: impl FnOnce(&[u8]) -> T) -> T {
        let range = self.data_start + range.start..self.data_start + range.end;
        let value = read(&self.source.bytes()[range]);
        if let Source::Map(map) = &self.source {
            // Keeping the pages is no error, only a waste.
            let _: io::Result<()> = release(map);
        }
        value
    }
}

/// All pages: the system maps some around the ones that were read.
#[cfg(unix)]
fn release(map: &Mmap) -> io::Result<()> {
    // SAFETY: the pages are those of a file, mapped read-only, whose bytes do not change: whoever
    // reads them again gets the same bytes from the file.
    unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) }
}

#[cfg(not(unix))]
fn release(_: &Mmap) -> io::Result<()> {
    Ok(())
}

fn reason(error: &SafeTensorError, bytes: &[u8]) -> String {
    if let Some(other) = no_tensors(bytes) {
        return other;
    }
    let len = bytes.len();
    let truncated = "the file is truncated, or still being downloaded";
    match error {
        SafeTensorError::MetadataIncompleteBuffer => match described_len(bytes) {
            Some(whole) if whole > len as u64 => {
                format!(
                    "its {len} bytes are not the {whole} that its header describes: {truncated}"
                )
            }
            Some(whole) => format!(
                "its {len} bytes are more than the {whole} that its header describes: download it again"
            ),
            None => format!("its {len} bytes are not those that its header describes"),
        },
        SafeTensorError::HeaderTooSmall | SafeTensorError::InvalidHeaderLength => {
            format!(
                "its {len} bytes end before its header does: {truncated}, or no safetensors file"
            )
        }
        SafeTensorError::HeaderTooLarge
        | SafeTensorError::InvalidHeader(_)
        | SafeTensorError::InvalidHeaderDeserialization(_) => {
            format!("no safetensors file: {error}")
        }
        other => other.to_string(),
    }
}

/// Bytes of the whole file by its header.
fn described_len(bytes: &[u8]) -> Option<u64> {
    let (len, rest) = bytes.split_first_chunk::<8>()?;
    let header_len = u64::from_le_bytes(*len);
    let header = rest.get(..usize::try_from(header_len).ok()?)?;
    let tensors: BTreeMap<String, Value> = serde_json::from_slice(header).ok()?;
    let end = |tensor: &Value| tensor.get("data_offsets")?.get(1)?.as_u64();
    let data_len = tensors.values().filter_map(end).max()?;
    data_len.checked_add(header_len)?.checked_add(8)
}
