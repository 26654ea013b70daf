//! Where the coordinator is, now and after it was started again.

use std::{fmt, fs, path::PathBuf};

/// The coordinator's address, or where it leaves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CoordinatorAddress {
    /// `host:port`.
    Fixed(String),
    /// A file in which each life of the coordinator leaves its `host:port`.
    File(PathBuf),
}

impl CoordinatorAddress {
    /// `host:port` as it is known now.
    ///
    /// # Errors
    ///
    /// If the file can't be read, in words.
    pub fn resolve(&self) -> Result<String, String> {
        match self {
            Self::Fixed(address) => Ok(address.clone()),
            Self::File(path) => fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .map_err(|error| format!("no coordinator has left its address: {self}: {error}")),
        }
    }
}

/// Addresses have no slashes.
impl From<String> for CoordinatorAddress {
    fn from(text: String) -> Self {
        if text.contains('/') {
            Self::File(text.into())
        } else {
            Self::Fixed(text)
        }
    }
}

impl fmt::Display for CoordinatorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(address) => f.write_str(address),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_fixed_or_read_anew_each_time() {
        let fixed = CoordinatorAddress::from("10.0.0.1:80".to_owned());
        assert_eq!(fixed.resolve().as_deref(), Ok("10.0.0.1:80"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("coordinator.addr");
        let file = CoordinatorAddress::from(path.display().to_string());
        let error = file.resolve().unwrap_err();
        assert!(error.contains("coordinator.addr"), "{error}");
        for address in ["10.0.0.1:80", "10.0.0.1:81"] {
            fs::write(&path, format!("{address}\n")).unwrap();
            assert_eq!(file.resolve().as_deref(), Ok(address));
        }
    }
}
