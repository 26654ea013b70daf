//! The rows of a dataset with targets.

use std::fs;
use std::path::{Path, PathBuf};

use retouch_proto::paths::{self, PathError};
use serde::Deserialize;

/// The file of training rows in a dataset folder.
pub const TRAIN_ROWS: &str = "train_metadata.jsonl";

/// The file of held-out rows in a dataset folder.
pub const TEST_ROWS: &str = "test_metadata.jsonl";

/// An instruction, the image it is about, and what the edit should look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The instruction.
    pub prompt: String,
    /// The source image's file.
    pub image: PathBuf,
    /// The target image's file.
    pub target: PathBuf,
}

/// Why a dataset can't be trained on.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    /// The file can't be read.
    #[error("can't read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not a row.
    #[error("{path} line {line}: {source}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// A row names no target.
    #[error(
        "{path} line {line}: row has no \"target\" image, which supervised training learns from"
    )]
    NoTarget {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// A row names an image that is not there, or outside of the dataset.
    #[error("{path} line {line}: image {image}: {source}")]
    NoImage {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The image.
        image: String,
        /// What is wrong with it.
        source: PathError,
    },
    /// The file has no rows.
    #[error("{0} has no rows")]
    Empty(PathBuf),
}

/// A row as it is written; other fields are the business of others.
#[derive(Deserialize)]
struct RawRow {
    prompt: String,
    image: String,
    target: Option<String>,
}

/// Reads the rows of `file` in the dataset `folder`, whose images must exist.
///
/// # Errors
///
/// With the file, the line and the value that is wrong.
pub fn read_rows(folder: &Path, file: &str) -> Result<Vec<Row>, RowsError> {
    let path = folder.join(file);
    let text = fs::read_to_string(&path).map_err(|source| RowsError::Io {
        path: path.clone(),
        source,
    })?;
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let rows: Vec<Row> = lines
        .map(|(index, line)| parse(folder, &path, index + 1, line))
        .collect::<Result<_, _>>()?;
    if rows.is_empty() {
        Err(RowsError::Empty(path))
    } else {
        Ok(rows)
    }
}

fn parse(folder: &Path, path: &Path, line: usize, text: &str) -> Result<Row, RowsError> {
    let at = || path.to_owned();
    let raw: RawRow = serde_json::from_str(text).map_err(|source| RowsError::Line {
        path: at(),
        line,
        source,
    })?;
    let target = raw
        .target
        .ok_or_else(|| RowsError::NoTarget { path: at(), line })?;
    let existing = |image: String| {
        paths::inside(folder, &image).map_err(|source| RowsError::NoImage {
            path: at(),
            line,
            image,
            source,
        })
    };
    Ok(Row {
        prompt: raw.prompt,
        image: existing(raw.image)?,
        target: existing(target)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(rows: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.png"), b"").unwrap();
        fs::write(folder.path().join(TRAIN_ROWS), rows).unwrap();
        folder
    }

    fn error(rows: &str) -> String {
        read_rows(dataset(rows).path(), TRAIN_ROWS)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn rows_are_read_in_order() {
        let folder = dataset(concat!(
            "{\"prompt\":\"add a dot\",\"image\":\"a.png\",\"requirement\":\"r\",\"target\":\"a.png\"}\n\n",
            "{\"prompt\":\"remove it\",\"image\":\"a.png\",\"target\":\"a.png\"}\n",
        ));
        let rows = read_rows(folder.path(), TRAIN_ROWS).unwrap();
        assert_eq!(
            rows.iter().map(|r| r.prompt.as_str()).collect::<Vec<_>>(),
            ["add a dot", "remove it"]
        );
        assert_eq!(rows[0].target, folder.path().join("a.png"));
    }

    #[test]
    fn hostile_rows_are_refused_or_understood() {
        let line = "{\"prompt\":\"x\",\"image\":\"a.png\",\"target\":\"a.png\"}\n";
        let folder = dataset(line);
        retouch_hostile::bombard(line.repeat(3).as_bytes(), |bytes| {
            fs::write(folder.path().join(TRAIN_ROWS), bytes).unwrap();
            let _ = read_rows(folder.path(), TRAIN_ROWS);
        });
    }

    #[test]
    fn errors_name_file_line_and_value() {
        let good = "{\"prompt\":\"x\",\"image\":\"a.png\",\"target\":\"a.png\"}\n";
        assert!(error(&format!("{good}{{oops")).contains("train_metadata.jsonl line 2"));
        assert!(
            error("{\"prompt\":\"x\",\"image\":\"a.png\"}")
                .contains("line 1: row has no \"target\"")
        );
        let missing = "{\"prompt\":\"x\",\"image\":\"a.png\",\"target\":\"b.png\"}";
        assert!(error(&format!("{good}{good}{missing}")).contains("line 3: image b.png"));
        let outside = missing.replace("b.png", "../b.png");
        assert!(error(&outside).contains("leads out of"));
        assert!(error("\n").contains("has no rows"));
    }
}
