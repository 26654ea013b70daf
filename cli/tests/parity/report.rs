use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::anyhow;

use crate::case::Case;
use crate::compare::{Worst, compare};
use crate::components;

/// One line per case, and one per case that failed.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) lines: Vec<String>,
    pub(crate) failures: Vec<String>,
}

/// Runs the cases one after the other.
pub(crate) fn run_all(folders: &[PathBuf]) -> Report {
    let mut report = Report::default();
    for folder in folders {
        report.add(folder, run(folder));
    }
    report
}

/// The component's name, if that much could be read, and the worst output.
fn run(folder: &Path) -> (String, anyhow::Result<Worst>) {
    let case = match Case::read(folder) {
        Ok(case) => case,
        Err(error) => return ("?".to_owned(), Err(error)),
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let outputs = components::run(&case)?;
        compare(&case, &outputs)
    }));
    let outcome = outcome.unwrap_or_else(|panic| Err(anyhow!("panicked: {}", message_of(&*panic))));
    (case.component, outcome)
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
        .to_owned()
}

impl Report {
    fn add(&mut self, folder: &Path, (component, outcome): (String, anyhow::Result<Worst>)) {
        let name = folder
            .file_name()
            .unwrap_or(folder.as_os_str())
            .to_string_lossy();
        match outcome {
            Ok(Worst { output, error }) => {
                self.lines.push(format!(
                    "{component:<20} {name:<44} {output:<44} {error:.2e}"
                ));
            }
            Err(error) => {
                self.lines
                    .push(format!("{component:<20} {name:<44} FAILED"));
                self.failures
                    .push(format!("{}: {error:#}", folder.display()));
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<20} {:<44} {:<44} error",
            "component", "case", "worst output"
        )?;
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}
