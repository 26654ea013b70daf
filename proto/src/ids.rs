//! Newtypes for everything that is counted or named.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::NAME_BYTES_MAX;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(
            /// The number itself.
            pub $inner,
        );

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// An iteration of training, counted from 1; iteration `i` turns state `i - 1` into state `i`.
    Iteration(u32)
}
number! {
    /// One life of a worker: a worker that restarts is a new generation (A10).
    Generation(u64)
}
number! {
    /// One membership of the learners' collective.
    Epoch(u64)
}
number! {
    /// One assignment of one task to one worker, unique over coordinator restarts.
    LeaseId(u64)
}

impl Iteration {
    /// The iteration after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A group: one (source image, instruction) pair and its candidate edits.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct GroupId {
    /// The iteration the group was drawn for.
    pub iteration: Iteration,
    /// Its number in the iteration, refill rounds included.
    pub index: u32,
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.iteration, self.index)
    }
}

/// A name that is not a usable id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("name {0:?} is not 1 to {NAME_BYTES_MAX} letters, digits, dots, dashes or underscores")]
pub struct InvalidName(String);

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the name: 1 to 64 letters, digits, dots, dashes or underscores.
            pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
                checked(name.into()).map(Self)
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(name: String) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidName;

            fn from_str(name: &str) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name! {
    /// A run, named by whoever created its folder.
    RunId
}
name! {
    /// A worker, by a name that it keeps when it restarts.
    WorkerId
}

fn checked(name: String) -> Result<String, InvalidName> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain) {
        Ok(name)
    } else {
        Err(InvalidName(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(WorkerId::new("rollout-0.node_1").is_ok());
        for bad in ["", "a b", "ü", &"x".repeat(65)] {
            let error = WorkerId::new(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn groups_order_by_iteration_then_index() {
        let group = |iteration, index| GroupId {
            iteration: Iteration(iteration),
            index,
        };
        assert!(group(1, 9) < group(2, 0));
        assert_eq!(group(3, 4).to_string(), "3/4");
    }
}
