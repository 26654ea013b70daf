//! Datasets as the Hugging Face Hub serves them: parquet shards with columns of texts and images.
//!
//! They are written once as a folder of this system's own, which every node reads without more: images as the files
//! that the shards hold, not decoded, and the two files of rows.

mod columns;
mod shards;
mod values;

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use parquet::{
    errors::ParquetError,
    record::{self, Field},
};
use retouch_proto::files::{beside, whole_folder};

pub use columns::Columns;

use self::{columns::Found, shards::Shard};
use crate::{DatasetError, Row, Split, error::Problems};

/// Where shards are read from, what of them, and where to.
pub struct Import<'a> {
    /// A shard, or a folder of them as `hf download` and `snapshot_download` leave it.
    pub source: &'a Path,
    /// The folder that is made; it must not be there.
    pub folder: &'a Path,
    /// Which columns are what.
    pub columns: Columns,
    /// The first rows of the training shards are held out, so many, where no shards are.
    pub held_out: usize,
    /// Whether rows that can't be used are left out, and not an error.
    pub skip_broken: bool,
    /// Judges the bytes of an image.
    pub check_image: &'a dyn Fn(&[u8]) -> Result<(), String>,
    /// Is called for every row.
    pub observe: &'a dyn Fn(),
}

/// What was imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Training rows.
    pub train: usize,
    /// Held-out rows.
    pub test: usize,
    /// Rows that were left out.
    pub skipped: usize,
}

/// Shards that can't be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file can't be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A shard is broken, or no parquet file.
    #[error("{}: {source}", path.display())]
    Parquet {
        /// Which.
        path: PathBuf,
        /// Why.
        source: ParquetError,
    },
    /// There is nothing to import, or the columns are not clear.
    #[error("{}: {problem}", path.display())]
    Unclear {
        /// Of which file or folder.
        path: PathBuf,
        /// What is not clear.
        problem: String,
    },
    /// Rows can't be used.
    #[error(transparent)]
    Rows(#[from] DatasetError),
}

impl ImportError {
    fn unclear(path: &Path, problem: impl Into<String>) -> Self {
        Self::Unclear {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }

    fn parquet(path: &Path) -> impl Fn(ParquetError) -> Self {
        move |source| Self::Parquet {
            path: path.to_owned(),
            source,
        }
    }

    fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

impl Import<'_> {
    /// Writes the folder, whole or not at all.
    ///
    /// # Errors
    /// See [`ImportError`]. Problems with rows come together, as `shard:row: problem`, rows counted from 1.
    pub fn run(&self) -> Result<Imported, ImportError> {
        if self.folder.exists() {
            let problem = "it is there already; name a folder to be made";
            return Err(ImportError::unclear(self.folder, problem));
        }
        let shards = shards::find(self.source)?;
        let (partial, wrap) = (beside(self.folder, "partial"), ImportError::io(self.folder));
        whole_folder(self.folder, &partial, wrap, |partial| {
            self.write(&shards, partial)
        })
    }

    fn write(&self, shards: &[Shard], partial: &Path) -> Result<Imported, ImportError> {
        let mut output = Output::create(partial)?;
        let mut held_out = match shards.iter().any(|shard| shard.split == Split::Test) {
            true => 0,
            false => self.held_out,
        };
        let mut problems: Option<DatasetError> = None;
        let mut skipped = 0;
        for shard in shards {
            let columns = self.columns.find(shard)?;
            let mut here = Problems::of(&shard.path);
            for (index, row) in shard.rows(&columns)?.enumerate() {
                (self.observe)();
                let row = row.map_err(ImportError::parquet(&shard.path))?;
                match self.example(shard, &columns, row) {
                    Ok(example) => {
                        let split = if held_out > 0 {
                            Split::Test
                        } else {
                            shard.split
                        };
                        held_out = held_out.saturating_sub(1);
                        output.add(split, example)?;
                    }
                    Err(_) if self.skip_broken => skipped += 1,
                    Err(problem) => here.push(index + 1, &problem),
                }
            }
            match (here.into_result(), &mut problems) {
                (Ok(()), _) => {}
                (Err(found), Some(all)) => all.append(found),
                (Err(found), none) => *none = Some(found),
            }
        }
        if let Some(problems) = problems {
            return Err(problems.into());
        }
        let [train, test] = output.finish()?;
        Ok(Imported {
            train,
            test,
            skipped,
        })
    }

    fn example(&self, shard: &Shard, columns: &Found, row: record::Row) -> Result<Example, String> {
        let (mut prompt, mut requirement, mut target) = (String::new(), String::new(), None);
        let mut sources = vec![Vec::new(); columns.images.len()];
        for (name, value) in row.into_columns() {
            let named = |problem: String| format!("{name}: {problem}");
            if name == columns.prompt {
                prompt = values::text(value).map_err(named)?;
            } else if columns.requirement.as_ref() == Some(&name) {
                requirement = values::text(value).map_err(named)?;
            } else if columns.target.as_ref() == Some(&name) {
                target = self.images(shard, value).map_err(named)?.into_iter().next();
            } else if let Some(place) = columns.images.iter().position(|image| *image == name) {
                // Columns come in the file's order, sources stand in the one that was asked for.
                sources[place] = self.images(shard, value).map_err(named)?;
            }
        }
        Example::new(prompt, requirement, sources.concat(), target)
    }

    /// The images of a cell, looked at.
    fn images(&self, shard: &Shard, value: Field) -> Result<Vec<Vec<u8>>, String> {
        let pictures = values::pictures(value)?.into_iter();
        let bytes = pictures.map(|picture| {
            let bytes = picture.bytes(shard.folder())?;
            (self.check_image)(&bytes)?;
            Ok(bytes)
        });
        bytes.collect()
    }
}

/// A row whose images have no files yet.
struct Example {
    row: Row,
    sources: Vec<Vec<u8>>,
    target: Option<Vec<u8>>,
}

impl Example {
    fn new(
        prompt: String,
        requirement: String,
        sources: Vec<Vec<u8>>,
        target: Option<Vec<u8>>,
    ) -> Result<Self, String> {
        let row = Row {
            prompt,
            requirement,
            // Shorter than any limit.
            images: vec![String::new(); sources.len()],
            target: None,
        };
        row.check()?;
        Ok(Self {
            row,
            sources,
            target,
        })
    }
}

/// The folder as it is written.
struct Output<'a> {
    folder: &'a Path,
    rows: [BufWriter<File>; 2],
    counts: [usize; 2],
}

const SPLITS: [Split; 2] = [Split::Train, Split::Test];

impl<'a> Output<'a> {
    fn create(folder: &'a Path) -> Result<Self, ImportError> {
        for part in ["images", "targets"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).map_err(ImportError::io(&part))?;
        }
        let open = |split: Split| {
            let path = folder.join(split.file_name());
            File::create(&path)
                .map(BufWriter::new)
                .map_err(ImportError::io(&path))
        };
        Ok(Self {
            folder,
            rows: [open(SPLITS[0])?, open(SPLITS[1])?],
            counts: [0; 2],
        })
    }

    fn add(&mut self, split: Split, example: Example) -> Result<(), ImportError> {
        let index = self.counts[split as usize];
        let Example {
            mut row,
            sources,
            target,
        } = example;
        for (place, (path, bytes)) in row.images.iter_mut().zip(&sources).enumerate() {
            let more = match place {
                0 => String::new(),
                place => format!("_{place}"),
            };
            *path = self.image(&format!("images/{split}_{index:07}{more}"), bytes)?;
        }
        let target = target.map(|bytes| self.image(&format!("targets/{split}_{index:07}"), &bytes));
        row.target = target.transpose()?;
        let line = serde_json::to_string(&row).map_err(|error| {
            ImportError::unclear(&self.folder.join(split.file_name()), error.to_string())
        })?;
        let file = &mut self.rows[split as usize];
        writeln!(file, "{line}").map_err(ImportError::io(&self.folder.join(split.file_name())))?;
        self.counts[split as usize] += 1;
        Ok(())
    }

    /// Writes an image file; gives its path in the folder.
    fn image(&self, stem: &str, bytes: &[u8]) -> Result<String, ImportError> {
        let name = format!("{stem}.{}", values::ending(bytes));
        let path = self.folder.join(&name);
        fs::write(&path, bytes).map_err(ImportError::io(&path))?;
        Ok(name)
    }

    fn finish(self) -> Result<[usize; 2], ImportError> {
        for (mut file, split) in self.rows.into_iter().zip(SPLITS) {
            file.flush()
                .map_err(ImportError::io(&self.folder.join(split.file_name())))?;
        }
        Ok(self.counts)
    }
}

#[cfg(test)]
mod tests;
