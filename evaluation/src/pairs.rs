//! Held-out pairs of a dataset folder.

use std::borrow::Cow;
use std::path::Path;

use image::RgbImage;
use retouch_dataset::{DatasetError, read_held_out};
use retouch_models::editor::{SizeRule, Sources};
use retouch_rollout_worker::source::{self, SourceError};
use thiserror::Error;

use crate::{sheet, verdict::Verdict};

/// Compares an edit of one pair with its known target.
pub type Oracle = Box<dyn Fn(&RgbImage) -> Verdict + Send + Sync>;

/// An image and an instruction.
pub struct Pair {
    /// The instruction.
    pub prompt: String,
    /// What the judge looks for.
    pub requirement: String,
    /// What pairs of one kind have in common: gains are also given by task.
    pub task: String,
    /// The images before the edit.
    pub sources: Sources,
    /// The image asked for, in datasets that have it: to be shown, and for nothing else.
    pub target: Option<RgbImage>,
    /// There in datasets whose targets are known.
    pub oracle: Option<Oracle>,
}

impl Pair {
    /// The images before the edit, as one.
    pub fn shown_sources(&self) -> Cow<'_, RgbImage> {
        sheet::together(&self.sources.images)
    }
}

/// Held-out pairs that can't be read.
#[derive(Debug, Error)]
pub enum PairsError {
    /// There are too few rows, or broken ones.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// An image can't be used.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// The first `count` pairs of the test split, in the dataset's order. Their task is their requirement, and they have no
/// oracle: whoever knows more about the dataset sets both.
///
/// # Errors
/// See [`PairsError`].
pub fn read(folder: &Path, count: usize, rule: SizeRule) -> Result<Vec<Pair>, PairsError> {
    read_held_out(folder, count)?
        .into_iter()
        .map(|row| {
            let load = |paths: &[String]| source::load(folder, paths, rule);
            let target = row.target.map(|path| load(&[path]));
            Ok(Pair {
                sources: load(&row.images)?,
                target: target.transpose()?.map(|wanted| wanted.last().clone()),
                prompt: row.prompt,
                task: row.requirement.clone(),
                requirement: row.requirement,
                oracle: None,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use retouch_models::editor::ImageSize;

    use super::*;

    #[test]
    fn pairs_are_the_first_rows_and_too_few_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        RgbImage::new(24, 16)
            .save(folder.path().join("a.png"))
            .unwrap();
        let row = |(prompt, more): (&str, &str)| {
            format!(
                r#"{{"prompt": "{prompt}", "image": "a.png", "requirement": "it is red"{more}}}"#
            )
        };
        let target = r#", "target": "a.png""#;
        let rows = [("first", target), ("second", ""), ("third", "")]
            .map(row)
            .join("\n");
        std::fs::write(folder.path().join("test_metadata.jsonl"), rows).unwrap();
        let size = ImageSize {
            height: 8,
            width: 8,
        };
        let read = |count| read(folder.path(), count, SizeRule::Fixed(size));
        let pairs = read(2).unwrap();
        let prompts: Vec<&str> = pairs.iter().map(|pair| pair.prompt.as_str()).collect();
        assert_eq!(prompts, ["first", "second"]);
        assert_eq!(pairs[0].task, "it is red");
        assert_eq!(pairs[0].sources.last().dimensions(), (8, 8));
        assert_eq!(pairs[0].target.as_ref(), Some(pairs[0].sources.last()));
        assert_eq!(pairs[1].target, None);
        let error = read(4).err().unwrap().to_string();
        assert!(error.contains("3 rows, fewer than the 4"), "{error}");
    }
}
