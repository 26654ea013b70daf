//! Problems, collected.

use std::path::Path;

/// Problems in words; the rest is only counted.
const SHOWN_MAX: usize = 20;

/// All that is wrong with a dataset: the first problems in words, as `file: problem` or `file:line: problem`.
#[derive(Debug, thiserror::Error)]
#[error("{}", list(.shown, *.count))]
pub struct DatasetError {
    shown: Vec<String>,
    count: usize,
}

impl DatasetError {
    /// One problem with a file as a whole.
    pub(crate) fn file(path: &Path, problem: impl Into<String>) -> Self {
        let shown = vec![format!("{}: {}", path.display(), problem.into())];
        Self { shown, count: 1 }
    }

    /// The first problems in words.
    pub fn shown(&self) -> &[String] {
        &self.shown
    }

    /// How many problems there are, those that are not shown included.
    pub fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.count += other.count;
        self.shown.append(&mut other.shown);
        self.shown.truncate(SHOWN_MAX);
    }
}

/// The problems of a file's lines, as they are found.
pub(crate) struct Problems<'a> {
    path: &'a Path,
    found: Option<DatasetError>,
}

impl<'a> Problems<'a> {
    pub(crate) fn of(path: &'a Path) -> Self {
        Self { path, found: None }
    }

    /// Adds a problem with a line, counted from 1.
    pub(crate) fn push(&mut self, line: usize, problem: &str) {
        let path = self.path.display();
        let found = self.found.get_or_insert_with(|| DatasetError {
            shown: Vec::new(),
            count: 0,
        });
        found.count += 1;
        // A file with a million bad lines is not held in memory twice.
        if found.shown.len() < SHOWN_MAX {
            found.shown.push(format!("{path}:{line}: {problem}"));
        }
    }

    pub(crate) fn into_result(self) -> Result<(), DatasetError> {
        self.found.map_or(Ok(()), Err)
    }
}

/// What both of two readings gave, or the problems of both.
///
/// # Errors
/// If one of the two is an error.
pub fn both<A, B>(
    first: Result<A, DatasetError>,
    second: Result<B, DatasetError>,
) -> Result<(A, B), DatasetError> {
    match (first, second) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        (Err(mut first), Err(second)) => {
            first.append(second);
            Err(first)
        }
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
    }
}

fn list(shown: &[String], count: usize) -> String {
    if let ([problem], 1) = (shown, count) {
        return problem.clone();
    }
    let more = match count - shown.len() {
        0 => String::new(),
        more => format!("\n  and {more} more"),
    };
    format!("{count} problems:\n  {}{more}", shown.join("\n  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(count: usize) -> Result<(), DatasetError> {
        let mut problems = Problems::of(Path::new("f"));
        (1..=count).for_each(|line| problems.push(line, "bad"));
        problems.into_result()
    }

    #[test]
    fn one_problem_is_one_line() {
        assert!(lines(0).is_ok());
        assert_eq!(lines(1).unwrap_err().to_string(), "f:1: bad");
        let two = lines(2).unwrap_err().to_string();
        assert_eq!(two, "2 problems:\n  f:1: bad\n  f:2: bad");
    }

    #[test]
    fn the_first_are_shown_and_all_are_counted() {
        let text = lines(23).unwrap_err().to_string();
        assert!(text.starts_with("23 problems:\n  f:1: bad\n"), "{text}");
        assert!(text.ends_with("  f:20: bad\n  and 3 more"), "{text}");
    }

    #[test]
    fn problems_of_two_readings_come_together() {
        let file = || Err::<(), _>(DatasetError::file(Path::new("g"), "no rows"));
        let text = both(lines(1), file()).unwrap_err().to_string();
        assert_eq!(text, "2 problems:\n  f:1: bad\n  g: no rows");
        assert_eq!(both(lines(0), file()).unwrap_err().count(), 1);
        let many = both(lines(21), lines(21)).unwrap_err().to_string();
        assert!(many.ends_with("f:20: bad\n  and 22 more"), "{many}");
        both(lines(0), lines(0)).unwrap();
    }
}
