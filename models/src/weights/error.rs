use std::fmt;
use std::path::{Path, PathBuf};

use super::fold::folded;
use super::quantised::REMEDY;

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
    #[error("{}: tensors do not fit the configuration{misfit}", path.display())]
    Mismatch {
        /// The file or folder.
        path: PathBuf,
        /// All that does not fit.
        misfit: Box<Misfit>,
    },
    /// An adapter's layers do not fit the model's.
    #[error("{}: the adapter does not fit this model, read as {format} names layers; {}", path.display(), problems.join("; "))]
    Adapter {
        /// The file.
        path: PathBuf,
        /// Whose naming it has.
        format: &'static str,
        /// What does not fit, a phrase for each kind.
        problems: Vec<String>,
    },
}

/// What does not fit between a file and what is to be loaded from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Misfit {
    /// Names that the model needs and the file lacks.
    pub missing: Vec<String>,
    /// Names that the file has and the model does not know.
    pub unexpected: Vec<String>,
    /// Tensors of another shape than the model's.
    pub misshaped: Vec<Misshaped>,
    /// Tensors of an element type that no parameter is stored in.
    pub unreadable: Vec<Mistyped>,
    /// The scheme by which the weights are quantised: then nothing else fits either.
    pub quantised: Option<&'static str>,
}

/// A tensor that should have floats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistyped {
    /// The tensor's name in the file.
    pub name: String,
    /// Its element type as files call it, such as `I8`.
    pub found: String,
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

    pub(crate) fn unsupported(
        path: &Path,
        field: &'static str,
        value: impl fmt::Display,
        supported: &'static str,
    ) -> Self {
        Self::Unsupported {
            path: path.to_owned(),
            field,
            value: value.to_string(),
            supported,
        }
    }

    pub(crate) fn format(path: &Path, reason: impl fmt::Display) -> Self {
        Self::Format {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }
}

impl Misfit {
    /// Whether everything fits.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// One line for each kind of misfit, with all its names; those of alike layers are folded into
    /// one, such as `blocks.{0..18}.bias`.
    pub fn lines(&self) -> Vec<String> {
        if let Some(scheme) = self.quantised {
            return vec![format!("the weights are quantised ({scheme}): {REMEDY}")];
        }
        let shapes =
            |tensor: &Misshaped| format!(" is {:?}, expected {:?}", tensor.found, tensor.expected);
        let misshaped = self
            .misshaped
            .iter()
            .map(|tensor| (tensor.name.as_str(), shapes(tensor)));
        let types = |tensor: &Mistyped| format!(" is {}, expected BF16, F16 or F32", tensor.found);
        let unreadable = self
            .unreadable
            .iter()
            .map(|tensor| (tensor.name.as_str(), types(tensor)));
        let kinds = [
            ("missing", self.missing.len(), folded(plain(&self.missing))),
            (
                "unexpected",
                self.unexpected.len(),
                folded(plain(&self.unexpected)),
            ),
            ("wrong shape", self.misshaped.len(), folded(misshaped)),
            (
                "element type not supported",
                self.unreadable.len(),
                folded(unreadable),
            ),
        ];
        let kinds = kinds.into_iter().filter(|(_, count, _)| *count > 0);
        kinds
            .map(|(title, count, lines)| format!("{title} ({count}): {}", lines.join(", ")))
            .collect()
    }
}

fn plain(names: &[String]) -> impl Iterator<Item = (&str, String)> {
    names.iter().map(|name| (name.as_str(), String::new()))
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines()
            .iter()
            .try_for_each(|line| write!(f, "; {line}"))
    }
}
