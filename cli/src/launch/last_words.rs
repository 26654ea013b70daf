//! Why a process ended, as its log tells.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Lines of a log that are shown where it names no error.
const TAIL_LINES: usize = 12;
/// What begins an error, and each of its causes (`exit::report`).
const ERROR: &str = "error: ";
const CAUSE: &str = "  because: ";

/// The end of a log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LastWords {
    log: PathBuf,
    said: Said,
}

#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// The process gave a reason.
    Error(String),
    /// It had no time to.
    Tail(String),
}

impl LastWords {
    /// What the log says after its first `from` bytes.
    pub(super) fn of(log: &Path, from: u64) -> Self {
        let bytes = std::fs::read(log).unwrap_or_default();
        let life = bytes.get(from as usize..).unwrap_or_default();
        Self {
            log: log.to_owned(),
            said: said(&String::from_utf8_lossy(life)),
        }
    }
}

/// Ends with the reason itself: the last line is what people look at.
impl fmt::Display for LastWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = self.log.display();
        match &self.said {
            Said::Error(reason) => write!(f, "{reason} (from {log})"),
            Said::Tail(tail) if tail.is_empty() => write!(f, "it wrote nothing to {log}"),
            Said::Tail(tail) => write!(f, "the end of {log}:\n{tail}"),
        }
    }
}

fn said(text: &str) -> Said {
    let lines: Vec<&str> = text.lines().collect();
    let error = lines.iter().rposition(|line| line.starts_with(ERROR));
    let Some(error) = error else {
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        return Said::Tail(tail.join("\n"));
    };
    let mut reason = lines[error][ERROR.len()..].to_owned();
    for line in &lines[error + 1..] {
        match line.strip_prefix(CAUSE) {
            Some(cause) => reason = format!("{reason}: {cause}"),
            // A list of problems has one in each line.
            None => reason = format!("{reason}\n{line}"),
        }
    }
    Said::Error(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_comes_with_its_causes_in_one_line() {
        let log = "INFO joined\nerror: can't listen\n  because: port 7 is in use\n";
        assert_eq!(
            said(log),
            Said::Error("can't listen: port 7 is in use".to_owned())
        );
        let list = "error: 2 problems\nrun.toml:1: a\nrun.toml:2: b\n";
        assert_eq!(
            said(list),
            Said::Error("2 problems\nrun.toml:1: a\nrun.toml:2: b".to_owned())
        );
    }

    #[test]
    fn a_process_that_gave_no_reason_has_the_end_of_its_log() {
        let lines: Vec<String> = (0..20).map(|line| format!("INFO {line}")).collect();
        assert_eq!(said(&lines.join("\n")), Said::Tail(lines[8..].join("\n")));
    }

    #[test]
    fn only_the_last_life_counts() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("learner-0.log");
        std::fs::write(&log, "error: old\nerror: new\n").unwrap();
        let words = LastWords::of(&log, "error: old\n".len() as u64);
        assert!(words.to_string().starts_with("new (from "), "{words}");
        let nothing = LastWords::of(&log, 22).to_string();
        assert!(nothing.starts_with("it wrote nothing"), "{nothing}");
    }
}
