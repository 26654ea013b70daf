//! The dataset folder in the Edit-R1 format.
//!
//! `images/*.png`, `train_metadata.jsonl` and `test_metadata.jsonl` with rows
//! `{"prompt", "image", "requirement"}`; with targets, for supervised training, each row also has
//! `"target"`, a picture below `targets/`. Beside them `oracle/<split>.jsonl` holds the cases
//! themselves, row for row.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use image::{ImageError, RgbImage};
use rand::RngExt;
use rayon::prelude::*;
use retouch_dataset::{DatasetError, Row, Split, parse_json, read_lines};
use serde::Serialize;

use crate::edit::Case;
use crate::generate::{self, Stream};
use crate::mistakes;
use crate::scene::Scene;

/// Why a dataset could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A file or folder could not be made.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// A picture could not be written.
    #[error("{path}: {source}")]
    Image {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: ImageError,
    },
}

/// What to generate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dataset {
    /// The seed that decides everything.
    pub seed: u64,
    /// How many training pairs.
    pub train: u32,
    /// How many held-out pairs.
    pub test: u32,
    /// Whether to write the pictures asked for.
    pub targets: Targets,
}

/// Whether a dataset holds the pictures asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Targets {
    /// Only sources and instructions, as for reinforcement learning.
    Omitted,
    /// Targets too, as for supervised training.
    Written,
    /// The same, but this part of the targets is wrong, as in pairs that were collected: another change than the one asked
    /// for, half of it, or one change too many.
    PartlyWrong(f64),
}

impl Dataset {
    /// Writes the whole folder, over what may be there.
    ///
    /// # Errors
    /// When a file or folder cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), WriteError> {
        let subfolders = match self.targets {
            Targets::Omitted => vec!["images", "oracle"],
            Targets::Written | Targets::PartlyWrong(_) => vec!["images", "oracle", "targets"],
        };
        for subfolder in subfolders {
            let path = folder.join(subfolder);
            fs::create_dir_all(&path).map_err(|source| WriteError::Io { path, source })?;
        }
        self.write_split(folder, Split::Train, self.train)?;
        self.write_split(folder, Split::Test, self.test)
    }

    fn write_split(&self, folder: &Path, split: Split, pairs: u32) -> Result<(), WriteError> {
        let cases: Vec<Case> = (0..pairs)
            .map(|index| generate::case(self.seed, split, index))
            .collect();
        let rows: Vec<Row> = cases
            .par_iter()
            .enumerate()
            .map(|(index, case)| self.write_pair(folder, split, index as u32, case))
            .collect::<Result<_, _>>()?;
        write_lines(&folder.join(split.file_name()), &rows)?;
        write_lines(&oracle_path(folder, split), &cases)
    }

    fn write_pair(
        &self,
        folder: &Path,
        split: Split,
        index: u32,
        case: &Case,
    ) -> Result<Row, WriteError> {
        let image = format!("images/{split}_{index:05}.png");
        write_image(&folder.join(&image), &case.source_image())?;
        let target = self.target(index, case);
        let path = format!("targets/{split}_{index:05}.png");
        if let Some(target) = &target {
            write_image(&folder.join(&path), &target.render())?;
        }
        let requirement = case.requirement().to_owned();
        Ok(Row {
            prompt: case.prompt(),
            images: vec![image],
            requirement,
            target: target.map(|_| path),
        })
    }

    /// The scene that is written as the target of a pair.
    fn target(&self, index: u32, case: &Case) -> Option<Scene> {
        let wrong = match self.targets {
            Targets::Omitted => return None,
            Targets::Written => 0.0,
            Targets::PartlyWrong(part) => part,
        };
        let mut rng = generate::rng(self.seed, Stream::WrongTargets, index);
        Some(match rng.random_bool(wrong) {
            true => mistakes::scene(case, &mut rng),
            false => case.target_scene(),
        })
    }
}

/// The cases of a split, in the order of its metadata.
///
/// # Errors
/// When the file is not there or lines of it are broken.
pub fn read_cases(folder: &Path, split: Split) -> Result<Vec<Case>, DatasetError> {
    read_lines(&oracle_path(folder, split), parse_json)
}

fn oracle_path(folder: &Path, split: Split) -> PathBuf {
    folder.join("oracle").join(format!("{split}.jsonl"))
}

fn write_image(path: &Path, image: &RgbImage) -> Result<(), WriteError> {
    image.save(path).map_err(|source| WriteError::Image {
        path: path.to_owned(),
        source,
    })
}

fn write_lines<T: Serialize>(path: &Path, rows: &[T]) -> Result<(), WriteError> {
    let mut text = String::new();
    for row in rows {
        text += &serde_json::to_string(row).expect("rows have string keys");
        text.push('\n');
    }
    fs::write(path, text).map_err(|source| WriteError::Io {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Dataset = Dataset {
        seed: 1,
        train: 16,
        test: 8,
        targets: Targets::Written,
    };

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        SMALL.write(folder.path()).expect("a written dataset");
        folder
    }

    #[test]
    fn what_was_written_is_read_again() {
        let folder = folder();
        for (split, pairs) in [(Split::Train, 16), (Split::Test, 8)] {
            let cases = read_cases(folder.path(), split).expect("cases");
            let rows = retouch_dataset::read(folder.path(), split).expect("rows");
            assert_eq!((cases.len(), rows.len()), (pairs, pairs));
            for (case, row) in cases.iter().zip(rows) {
                let open = |file: &str| {
                    image::open(folder.path().join(file))
                        .expect("a picture")
                        .to_rgb8()
                };
                assert_eq!(row.prompt, case.prompt());
                assert_eq!(open(&row.images[0]), case.source_image());
                assert_eq!(
                    open(row.target.as_deref().expect("a target")),
                    case.target_image()
                );
            }
        }
    }

    #[test]
    fn as_many_targets_are_wrong_as_was_asked_for() {
        let dataset = Dataset {
            targets: Targets::PartlyWrong(0.4),
            ..SMALL
        };
        let wrong = |index: &u32| {
            let case = generate::case(SMALL.seed, Split::Train, *index);
            dataset.target(*index, &case) != Some(case.target_scene())
        };
        let count = (0..1_000).filter(wrong).count();
        assert!((330..=430).contains(&count), "{count} of 1000");
    }

    #[test]
    fn a_broken_line_is_named() {
        let folder = folder();
        let path = oracle_path(folder.path(), Split::Test);
        let mut text = fs::read_to_string(&path).expect("the oracle's file");
        text.insert_str(
            text.find('\n').expect("two lines") + 1,
            "{\"kind\": \"fly\"}\n",
        );
        fs::write(&path, text).expect("a broken file");
        let error = read_cases(folder.path(), Split::Test)
            .expect_err("an error")
            .to_string();
        assert!(
            error.contains("test.jsonl:2: unknown variant `fly`"),
            "{error}"
        );
    }
}
