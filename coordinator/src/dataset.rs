//! The training pairs, as the run begins with them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use retouch_proto::limits::{ADDRESS_BYTES_MAX, PROMPT_BYTES_MAX};
use retouch_proto::paths;

use crate::machine::prompts::DatasetRow;

/// The training split's file.
pub const FILE_NAME: &str = "train_metadata.jsonl";
/// Problems told at once.
const PROBLEMS_MAX: usize = 20;

/// What is wrong with a dataset.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The file can't be read.
    #[error("{path}: {source}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is nothing to train on.
    #[error("{path}: no rows; each line is an object with prompt, image and requirement")]
    Empty {
        /// Which file.
        path: PathBuf,
    },
    /// Lines that can't be used.
    #[error("{count} bad rows:\n  {}", .problems.join("\n  "))]
    Rows {
        /// How many.
        count: usize,
        /// The first of them, as `file:line: problem`.
        problems: Vec<String>,
    },
}

/// Reads the training rows and checks that their images are there.
///
/// # Errors
/// Every bad line with file, line and value (the first twenty in words).
pub fn read(folder: &Path) -> Result<Vec<DatasetRow>, DatasetError> {
    let path = folder.join(FILE_NAME);
    let text = fs::read_to_string(&path).map_err(|source| DatasetError::Io {
        path: path.clone(),
        source,
    })?;
    let mut rows = Vec::new();
    let mut problems = Vec::new();
    for (index, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        match row(folder, line) {
            Ok(row) => rows.push(row),
            Err(problem) => problems.push(format!("{}:{}: {problem}", path.display(), index + 1)),
        }
    }
    if !problems.is_empty() {
        let count = problems.len();
        problems.truncate(PROBLEMS_MAX);
        return Err(DatasetError::Rows { count, problems });
    }
    if rows.is_empty() {
        return Err(DatasetError::Empty { path });
    }
    Ok(rows)
}

fn row(folder: &Path, line: &str) -> Result<DatasetRow, String> {
    let row: DatasetRow = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let long = |text: &str| text.len() > PROMPT_BYTES_MAX;
    if row.prompt.trim().is_empty() {
        return Err("prompt is empty".into());
    }
    if long(&row.prompt) || long(&row.requirement) || row.image.len() > ADDRESS_BYTES_MAX {
        return Err(format!("a text is longer than {PROMPT_BYTES_MAX} bytes"));
    }
    let file = paths::inside(folder, &row.image)
        .map_err(|error| format!("image {:?}: {error}", row.image))?;
    if !file.is_file() {
        return Err(format!("image {:?} is no file", row.image));
    }
    Ok(row)
}

/// Names the rows' content, so that a run does not go on with others.
pub fn hash(rows: &[DatasetRow]) -> String {
    let mut hasher = blake3::Hasher::new();
    for row in rows {
        for text in [&row.prompt, &row.image, &row.requirement] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_lines(lines: &str) -> Result<Vec<DatasetRow>, String> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("images")).unwrap();
        fs::write(folder.path().join("images/a.png"), "").unwrap();
        fs::write(folder.path().join(FILE_NAME), lines).unwrap();
        let prefix = format!("{}/", folder.path().display());
        read(folder.path()).map_err(|error| error.to_string().replace(&prefix, ""))
    }

    #[test]
    fn rows_are_read_and_other_keys_ignored() {
        let line = r#"{"prompt": "p", "image": "images/a.png", "requirement": "r", "task": "add"}"#;
        let rows = read_lines(&format!("{line}\n\n{line}\n")).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].requirement, "r");
    }

    #[test]
    fn every_bad_row_is_told_with_its_line() {
        let lines = [
            r#"{"prompt": "p", "image": "images/a.png", "requirement": "r"}"#,
            r#"{"prompt": "p", "image": "images/missing.png", "requirement": "r"}"#,
            r#"{"prompt": "p", "image": "#,
            r#"{"prompt": "p", "image": "../a.png", "requirement": "r"}"#,
            r#"{"prompt": " ", "image": "images/a.png", "requirement": "r"}"#,
        ];
        let error = read_lines(&lines.join("\n")).unwrap_err();
        assert!(error.starts_with("4 bad rows"), "{error}");
        for expected in [
            "train_metadata.jsonl:2: image \"images/missing.png\": ",
            "train_metadata.jsonl:3: ",
            "train_metadata.jsonl:4: image \"../a.png\"",
            "train_metadata.jsonl:5: prompt is empty",
        ] {
            assert!(error.contains(expected), "missing {expected:?} in {error}");
        }
    }

    #[test]
    fn hostile_rows_are_refused_or_understood() {
        let line = r#"{"prompt": "p", "image": "images/a.png", "requirement": "r"}"#;
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("images")).unwrap();
        fs::write(folder.path().join("images/a.png"), "").unwrap();
        retouch_hostile::bombard(line.as_bytes(), |bytes| {
            if let Ok(row) = row(folder.path(), &String::from_utf8_lossy(bytes)) {
                assert_eq!(Path::new(&row.image).file_name(), Some("a.png".as_ref()));
            }
        });
    }

    #[test]
    fn missing_and_empty_files_are_told() {
        assert!(
            read(Path::new("/no/such"))
                .unwrap_err()
                .to_string()
                .contains("/no/such/train_metadata.jsonl")
        );
        assert!(read_lines("\n").unwrap_err().contains("no rows"));
    }

    #[test]
    fn the_hash_depends_on_every_text_and_on_their_borders() {
        let row = |prompt: &str, image: &str| DatasetRow {
            prompt: prompt.into(),
            image: image.into(),
            requirement: String::new(),
        };
        assert_ne!(hash(&[row("ab", "c")]), hash(&[row("a", "bc")]));
        assert_eq!(hash(&[row("ab", "c")]), hash(&[row("ab", "c")]));
    }
}
