//! The two parts of a dataset, and reading one.

use std::{fmt, fs, path::Path};

use serde::Serialize;

use crate::{DatasetError, Row, both, read_lines};

/// A part of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// For learning.
    Train,
    /// Held out, for evaluation.
    Test,
}

impl Split {
    /// The name of its file in the dataset's folder.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Train => "train_metadata.jsonl",
            Self::Test => "test_metadata.jsonl",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Test => "test",
        })
    }
}

/// Reads the rows of a split, at least one; the images that they name are there.
///
/// # Errors
/// If the file can't be read or has no rows; else the problems of all lines.
pub fn read(folder: &Path, split: Split) -> Result<Vec<Row>, DatasetError> {
    read_with(folder, split, Ok)
}

/// As [`read`], with a further step on every sound row, whose refusals are problems of their lines. Rows are read on
/// all cores.
///
/// # Errors
/// As [`read`].
pub fn read_with<T: Send>(
    folder: &Path,
    split: Split,
    step: impl Fn(Row) -> Result<T, String> + Sync,
) -> Result<Vec<T>, DatasetError> {
    let path = folder.join(split.file_name());
    if let Some(problem) = other_layout(folder, &path) {
        return Err(DatasetError::file(folder, problem));
    }
    let rows = read_lines(&path, |line| Row::parse(folder, line).and_then(&step))?;
    if rows.is_empty() {
        let problem = "no rows; each line is an object with prompt, image and requirement";
        return Err(DatasetError::file(&path, problem));
    }
    Ok(rows)
}

/// What a folder is that has no such file of rows, if that can be told.
fn other_layout(folder: &Path, rows: &Path) -> Option<&'static str> {
    let is_shard = |path: &Path| path.extension().is_some_and(|end| end == "parquet");
    let has_shards = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .any(|path| is_shard(&path))
    };
    let shards = !rows.exists() && (has_shards(folder) || has_shards(&folder.join("data")));
    shards.then_some(
        "parquet shards, as the Hugging Face Hub has them: `retouch dataset import` makes a dataset folder of them",
    )
}

/// The first `count` held-out rows. For none, no file need be there.
///
/// # Errors
/// As [`read`], and if there are fewer.
pub fn read_held_out(folder: &Path, count: usize) -> Result<Vec<Row>, DatasetError> {
    let mut rows = held_out(folder, count, Ok)?;
    rows.truncate(count);
    Ok(rows)
}

/// What a dataset has of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Rows to learn from.
    pub train: usize,
    /// Held-out rows.
    pub test: usize,
    /// Most source images of a row.
    pub sources_max: usize,
}

/// Checks that a folder has training rows and at least `held_out` held-out ones, all of them sound and passed by `step`
/// (which may decode their images). For no held-out rows, no file need be there.
///
/// # Errors
/// The problems of both splits together.
pub fn check(
    folder: &Path,
    held_out_min: usize,
    step: impl Fn(&Row) -> Result<(), String> + Sync,
) -> Result<Counts, DatasetError> {
    let sources = |row: Row| step(&row).map(|()| row.images.len());
    let train = read_with(folder, Split::Train, sources);
    let (train, test) = both(train, held_out(folder, held_out_min, sources))?;
    Ok(Counts {
        train: train.len(),
        test: test.len(),
        sources_max: train.into_iter().chain(test).max().unwrap_or(0),
    })
}

fn held_out<T: Send>(
    folder: &Path,
    count: usize,
    step: impl Fn(Row) -> Result<T, String> + Sync,
) -> Result<Vec<T>, DatasetError> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let rows = read_with(folder, Split::Test, step)?;
    if rows.len() < count {
        let path = folder.join(Split::Test.file_name());
        let problem = format!(
            "{} rows, fewer than the {count} of evaluation.pairs",
            rows.len()
        );
        return Err(DatasetError::file(&path, problem));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &str = r#"{"prompt": "p", "image": "a.png", "requirement": "r"}"#;

    fn dataset(split: Split, lines: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.png"), "").unwrap();
        fs::write(folder.path().join(split.file_name()), lines).unwrap();
        folder
    }

    #[test]
    fn all_bad_lines_are_told_and_no_row_given() {
        let missing = ROW.replace("a.png", "b.png");
        let folder = dataset(Split::Train, &format!("{ROW}\n\n{missing}\r\n{{\n{ROW}"));
        let error = read(folder.path(), Split::Train).unwrap_err().to_string();
        let file = folder.path().join("train_metadata.jsonl");
        for (line, problem) in [(3, "image \"b.png\": "), (4, "EOF ")] {
            let expected = format!("\n  {}:{line}: {problem}", file.display());
            assert!(error.contains(&expected), "{error}");
        }
        assert!(error.starts_with("2 problems:\n"), "{error}");
    }

    #[test]
    fn a_further_step_gives_or_refuses_rows() {
        let other = ROW.replace("\"p\"", "\"q\"");
        let folder = dataset(Split::Test, &format!("{ROW}\n{other}\n"));
        let prompt = |row: Row| Ok(row.prompt);
        let prompts = read_with(folder.path(), Split::Test, prompt).unwrap();
        assert_eq!(prompts, ["p", "q"]);
        let error = read_with(folder.path(), Split::Test, |row| match &*row.prompt {
            "p" => Ok(()),
            prompt => Err(format!("{prompt} is not wanted")),
        });
        let error = error.unwrap_err().to_string();
        assert!(
            error.ends_with("test_metadata.jsonl:2: q is not wanted"),
            "{error}"
        );
    }

    #[test]
    fn a_split_has_a_file_and_rows() {
        for lines in ["", "\n", "\u{feff}\r\n"] {
            let folder = dataset(Split::Train, lines);
            let error = read(folder.path(), Split::Train).unwrap_err().to_string();
            assert!(error.contains("train_metadata.jsonl: no rows"), "{error}");
        }
        let error = read(Path::new("/no/such"), Split::Test).unwrap_err();
        let error = error.to_string();
        assert!(
            error.starts_with("/no/such/test_metadata.jsonl: No such file"),
            "{error}"
        );
    }

    #[test]
    fn shards_of_the_hub_are_told_from_a_missing_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("data")).unwrap();
        let told = || read(folder.path(), Split::Train).unwrap_err().to_string();
        assert!(told().contains("train_metadata.jsonl: No such file"));
        fs::write(folder.path().join("data/train-0.parquet"), "PAR1").unwrap();
        assert!(told().contains("`retouch dataset import`"));
    }

    #[test]
    fn so_many_held_out_rows_are_there_or_it_is_an_error() {
        let folder = dataset(Split::Test, &format!("{ROW}\n{ROW}\n{ROW}\n"));
        for count in [0, 2, 3] {
            let rows = read_held_out(folder.path(), count).unwrap();
            assert_eq!(rows.len(), count);
        }
        let error = read_held_out(folder.path(), 4).unwrap_err().to_string();
        let expected = "test_metadata.jsonl: 3 rows, fewer than the 4 of evaluation.pairs";
        assert!(error.ends_with(expected), "{error}");
        assert!(read_held_out(Path::new("/no/such"), 0).unwrap().is_empty());
    }

    #[test]
    fn hostile_files_are_refused_or_understood() {
        let folder = dataset(Split::Train, "");
        let lines = format!("\u{feff}{ROW}\r\n\n").repeat(3);
        retouch_hostile::bombard(lines.as_bytes(), |bytes| {
            fs::write(folder.path().join("train_metadata.jsonl"), bytes).unwrap();
            if let Ok(rows) = read(folder.path(), Split::Train) {
                assert!(rows.iter().all(|row| !row.prompt.trim().is_empty()));
            }
        });
    }
}
