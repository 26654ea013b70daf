//! Which files are shards, and of which split.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use parquet::{
    errors::ParquetError,
    file::{reader::FileReader, serialized_reader::SerializedFileReader},
    record::{self, reader::RowIter},
    schema::types::Type,
};

use super::{ImportError, columns::Found};
use crate::Split;

/// Folders in folders that are looked into: `SUBSET/SPLIT/0000.parquet` is the deepest that the Hub makes.
const DEPTH_MAX: usize = 3;
/// Rows decoded at a time: a row has images, of megabytes each.
const ROWS_AT_ONCE: usize = 16;
/// How shards of held-out rows are called.
const HELD_OUT: [&str; 5] = ["test", "validation", "valid", "val", "eval"];

/// A parquet file.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) path: PathBuf,
    pub(super) split: Split,
    /// Its columns.
    pub(super) schema: Type,
}

/// All shards of a folder in the order of their names, or the one that `source` is.
pub(super) fn find(source: &Path) -> Result<Vec<Shard>, ImportError> {
    let mut paths = Vec::new();
    collect(source, DEPTH_MAX, &mut paths).map_err(ImportError::io(source))?;
    paths.sort();
    if paths.is_empty() {
        let problem =
            "no parquet file is there; expected shards such as data/train-00000-of-00001.parquet";
        return Err(ImportError::unclear(source, problem));
    }
    let base = source
        .parent()
        .filter(|_| source.is_file())
        .unwrap_or(source);
    let shards = paths.into_iter().map(|path| {
        let inner = path.strip_prefix(base).unwrap_or(&path);
        let schema = open(&path).map_err(ImportError::parquet(&path))?;
        Ok(Shard {
            split: split_of(inner),
            schema: schema.metadata().file_metadata().schema().clone(),
            path,
        })
    });
    shards.collect()
}

fn collect(path: &Path, depth: usize, into: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !path.is_dir() {
        into.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        let is_shard = path.extension().is_some_and(|end| end == "parquet");
        if is_shard || (path.is_dir() && depth > 0) {
            collect(&path, depth - 1, into)?;
        }
    }
    Ok(())
}

/// The split that the words of a shard's name and of its folders tell.
fn split_of(path: &Path) -> Split {
    let text = path.to_string_lossy().to_lowercase();
    let mut words = text.split(|c: char| !c.is_ascii_alphabetic());
    match words.any(|word| HELD_OUT.contains(&word)) {
        true => Split::Test,
        false => Split::Train,
    }
}

fn open(path: &Path) -> Result<SerializedFileReader<File>, ParquetError> {
    SerializedFileReader::new(File::open(path)?)
}

impl Shard {
    /// Where paths that it names begin.
    pub(super) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// Its rows, with these columns only.
    pub(super) fn rows(
        &self,
        columns: &Found,
    ) -> Result<impl Iterator<Item = Result<record::Row, ParquetError>> + use<>, ImportError> {
        let read = || {
            let fields = self.schema.get_fields().iter();
            let wanted = fields
                .filter(|field| columns.contains(field.name()))
                .cloned();
            let projection = Type::group_type_builder(self.schema.name())
                .with_fields(wanted.collect())
                .build()?;
            let rows = RowIter::from_file_into(Box::new(open(&self.path)?));
            Ok(rows
                .project(Some(projection))?
                .with_batch_size(ROWS_AT_ONCE))
        };
        read().map_err(ImportError::parquet(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_split() {
        for (path, split) in [
            ("data/train-00000-of-00003.parquet", Split::Train),
            ("data/test-00000-of-00001.parquet", Split::Test),
            ("default/validation/0000.parquet", Split::Test),
            ("default/train/0000.parquet", Split::Train),
            ("0007.parquet", Split::Train),
            ("latest/contest_7.parquet", Split::Train),
        ] {
            assert_eq!(split_of(Path::new(path)), split, "{path}");
        }
    }
}
