//! What is wrong with a run file, all of it at once.

use std::fmt;

use serde::Serialize;

/// One problem: where, which key, what is wrong with the value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The layer that gave the value, with its line where it has lines; empty where it is told by the key alone.
    pub origin: String,
    /// Dotted path of the key; empty if the problem is the layer itself.
    pub key: String,
    /// The wrong value, and what would be right.
    pub problem: String,
}

impl Problem {
    pub(super) fn text(origin: impl Into<String>, problem: impl ToString) -> Self {
        let problem = problem.to_string().trim_end().to_owned();
        Self {
            origin: origin.into(),
            key: String::new(),
            problem,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.origin, &self.key] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.problem)
    }
}

/// Every problem of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    problems: Vec<Problem>,
}

impl ConfigErrors {
    pub(super) fn one(problem: Problem) -> Self {
        Self::of(vec![problem])
    }

    /// Of at least one problem.
    pub(super) fn of(problems: Vec<Problem>) -> Self {
        Self { problems }
    }

    /// `Ok` when there are none.
    pub(super) fn check(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Self::of(problems))
        }
    }

    /// The problems, in the order of the layers.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.problems.len() == 1 { "" } else { "s" };
        write!(
            f,
            "{} problem{plural} in the configuration",
            self.problems.len()
        )?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
