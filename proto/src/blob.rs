//! Content-addressed bulk data.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::ADDRESS_BYTES_MAX;

/// The blake3 hash of a blob's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The first twelve hex digits, for people.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from(self.0).to_hex())
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.short())
    }
}

/// Text that is not a content hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("content hash {0:?} is not 64 hex digits")]
pub struct InvalidHash(String);

impl FromStr for ContentHash {
    type Err = InvalidHash;

    fn from_str(text: &str) -> Result<Self, InvalidHash> {
        blake3::Hash::from_hex(text)
            .map(|hash| Self(*hash.as_bytes()))
            .map_err(|_| InvalidHash(text.to_owned()))
    }
}

impl TryFrom<String> for ContentHash {
    type Error = InvalidHash;

    fn try_from(text: String) -> Result<Self, InvalidHash> {
        text.parse()
    }
}

impl From<ContentHash> for String {
    fn from(hash: ContentHash) -> String {
        hash.to_string()
    }
}

/// Where a blob can be had.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BlobAddress {
    /// A worker's `Blobs` service, as `host:port`.
    Grpc(String),
    /// A file, relative to the run folder: checkpoints outlive every worker.
    File(String),
}

impl fmt::Display for BlobAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grpc(address) => write!(f, "grpc://{address}"),
            Self::File(path) => write!(f, "file:{path}"),
        }
    }
}

/// Text that is not a blob address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("blob address {0:?} is neither grpc://host:port nor file:path within the run folder")]
pub struct InvalidAddress(String);

impl FromStr for BlobAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress(text.chars().take(ADDRESS_BYTES_MAX).collect());
        if text.len() > ADDRESS_BYTES_MAX {
            return Err(invalid());
        }
        if let Some(address) = text.strip_prefix("grpc://") {
            let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
            let valid = !host.is_empty() && port.parse::<u16>().is_ok();
            return valid
                .then(|| Self::Grpc(address.to_owned()))
                .ok_or_else(invalid);
        }
        let path = text.strip_prefix("file:").ok_or_else(invalid)?;
        // A message may not make its receiver read outside of the run folder.
        let inside = |part: &str| !matches!(part, "" | "." | "..");
        let valid = path.split('/').all(inside);
        valid
            .then(|| Self::File(path.to_owned()))
            .ok_or_else(invalid)
    }
}

impl TryFrom<String> for BlobAddress {
    type Error = InvalidAddress;

    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

impl From<BlobAddress> for String {
    fn from(address: BlobAddress) -> String {
        address.to_string()
    }
}

/// A blob by name, with some of those who hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    /// What the bytes must hash to.
    pub hash: ContentHash,
    /// Length of the blob.
    pub size_bytes: u64,
    /// Where to try, in this order.
    pub owners: Vec<BlobAddress>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_text_round_trips() {
        let hash = ContentHash::of(b"retouch");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert!(
            "12ab"
                .parse::<ContentHash>()
                .unwrap_err()
                .to_string()
                .contains("12ab")
        );
    }

    #[test]
    fn addresses_round_trip() {
        for text in [
            "grpc://10.0.0.1:4000",
            "grpc://[::1]:80",
            "file:checkpoints/3/state.safetensors",
        ] {
            assert_eq!(text.parse::<BlobAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn addresses_stay_inside_the_run_folder() {
        for text in [
            "file:/etc/passwd",
            "file:../x",
            "file:a//b",
            "file:a/../../b",
            "grpc://host",
            "x",
        ] {
            assert!(text.parse::<BlobAddress>().is_err(), "{text}");
        }
    }
}
