use std::fmt;
use std::path::{Path, PathBuf};

/// Why a model, adapter or tensor file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its name promises.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A configuration asks for something that this implementation does not have.
    #[error("{}: {field} = {value} is not supported; supported: {supported}", path.display())]
    Unsupported {
        /// The configuration file.
        path: PathBuf,
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        supported: &'static str,
    },
    /// The tensors do not fit the module.
    #[error("{}: tensors do not fit the configuration{}{}{}", path.display(),
        List("missing", missing), List("unexpected", unexpected), List("wrong shape", misshaped))]
    Mismatch {
        /// The file or folder.
        path: PathBuf,
        /// Names that the module needs and the file lacks.
        missing: Vec<String>,
        /// Names that the file has and the module does not know.
        unexpected: Vec<String>,
        /// Tensors of another shape than the module's.
        misshaped: Vec<Misshaped>,
    },
}

/// A tensor whose shape differs from the one that the configuration implies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misshaped {
    /// The tensor's name in the file.
    pub name: String,
    /// The shape in the file.
    pub found: Vec<usize>,
    /// The shape that the module needs.
    pub expected: Vec<usize>,
}

impl LoadError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn format(path: &Path, reason: impl fmt::Display) -> Self {
        Self::Format {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }
}

impl fmt::Display for Misshaped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            found,
            expected,
        } = self;
        write!(f, "{name} is {found:?}, expected {expected:?}")
    }
}

/// One part of the message, cut short: a wrong configuration may miss thousands of names.
struct List<'a, T>(&'static str, &'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_MAX: usize = 8;
        let Self(title, items) = self;
        if items.is_empty() {
            return Ok(());
        }
        write!(f, "; {title} ({}): ", items.len())?;
        for (i, item) in items.iter().take(SHOWN_MAX).enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{item}")?;
        }
        if items.len() > SHOWN_MAX {
            write!(f, ", ...")?;
        }
        Ok(())
    }
}
