//! The only conversions between generated messages and domain types.
//!
//! Domain to message never fails. Message to domain checks presence, sizes and values.

mod control;
mod judge;
mod report;
mod task;

use crate::blob::{BlobAddress, BlobRef, ContentHash};
use crate::ids::{GroupId, Iteration};
use crate::limits::{BLOB_BYTES_MAX, OWNERS_MAX};
use crate::pb;

/// A message that does not say what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConvertError {
    field: &'static str,
    problem: String,
}

impl ConvertError {
    pub(crate) fn new(field: &'static str, problem: impl ToString) -> Self {
        Self {
            field,
            problem: problem.to_string(),
        }
    }
}

impl From<ConvertError> for tonic::Status {
    fn from(error: ConvertError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

type Result<T> = std::result::Result<T, ConvertError>;

fn required<T>(field: &'static str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| ConvertError::new(field, "is missing"))
}

fn text(field: &'static str, value: String, bytes_max: usize) -> Result<String> {
    if value.len() > bytes_max {
        let problem = format!("{} bytes, at most {bytes_max} are allowed", value.len());
        return Err(ConvertError::new(field, problem));
    }
    Ok(value)
}

fn parsed<T>(field: &'static str, value: &str) -> Result<T>
where
    T: std::str::FromStr,
    T::Err: ToString,
{
    value
        .parse()
        .map_err(|error: T::Err| ConvertError::new(field, error.to_string()))
}

/// Converts every item, with a limit on their number.
fn all<M, T>(
    field: &'static str,
    items: Vec<M>,
    len_max: usize,
    convert: impl FnMut(M) -> Result<T>,
) -> Result<Vec<T>> {
    if items.len() > len_max {
        let problem = format!("{} entries, at most {len_max} are allowed", items.len());
        return Err(ConvertError::new(field, problem));
    }
    items.into_iter().map(convert).collect()
}

fn finite(field: &'static str, value: f64) -> Result<f64> {
    if value.is_finite() {
        Ok(value)
    } else {
        Err(ConvertError::new(field, format!("{value} is not finite")))
    }
}

pub(crate) fn hash(field: &'static str, bytes: &[u8]) -> Result<ContentHash> {
    let problem = |_| ConvertError::new(field, format!("{} bytes, a hash has 32", bytes.len()));
    bytes.try_into().map(ContentHash).map_err(problem)
}

fn optional_hash(field: &'static str, bytes: &[u8]) -> Result<Option<ContentHash>> {
    if bytes.is_empty() {
        Ok(None)
    } else {
        hash(field, bytes).map(Some)
    }
}

fn hash_bytes(hash: &ContentHash) -> Vec<u8> {
    hash.0.to_vec()
}

fn optional_hash_bytes(hash: &Option<ContentHash>) -> Vec<u8> {
    hash.as_ref().map(hash_bytes).unwrap_or_default()
}

impl From<GroupId> for pb::GroupId {
    fn from(group: GroupId) -> Self {
        Self {
            iteration: group.iteration.0,
            index: group.index,
        }
    }
}

impl From<pb::GroupId> for GroupId {
    fn from(group: pb::GroupId) -> Self {
        Self {
            iteration: Iteration(group.iteration),
            index: group.index,
        }
    }
}

impl From<BlobRef> for pb::BlobRef {
    fn from(blob: BlobRef) -> Self {
        Self {
            hash: hash_bytes(&blob.hash),
            size_bytes: blob.size_bytes,
            owners: blob.owners.iter().map(BlobAddress::to_string).collect(),
        }
    }
}

impl TryFrom<pb::BlobRef> for BlobRef {
    type Error = ConvertError;

    fn try_from(blob: pb::BlobRef) -> Result<Self> {
        if blob.size_bytes > BLOB_BYTES_MAX {
            let problem = format!(
                "{} bytes, at most {BLOB_BYTES_MAX} are allowed",
                blob.size_bytes
            );
            return Err(ConvertError::new("blob.size_bytes", problem));
        }
        Ok(Self {
            hash: hash("blob.hash", &blob.hash)?,
            size_bytes: blob.size_bytes,
            owners: all("blob.owners", blob.owners, OWNERS_MAX, |owner| {
                parsed("blob.owners", &owner)
            })?,
        })
    }
}

#[cfg(test)]
mod messages;

#[cfg(test)]
mod tests {
    use super::*;

    fn blob() -> BlobRef {
        BlobRef {
            hash: ContentHash::of(b"x"),
            size_bytes: 1,
            owners: vec![
                BlobAddress::Grpc("h:1".into()),
                BlobAddress::File("a/b".into()),
            ],
        }
    }

    #[test]
    fn blob_references_round_trip() {
        assert_eq!(BlobRef::try_from(pb::BlobRef::from(blob())), Ok(blob()));
    }

    #[test]
    fn bad_blob_references_name_field_and_value() {
        let message = |change: fn(&mut pb::BlobRef)| {
            let mut message = pb::BlobRef::from(blob());
            change(&mut message);
            BlobRef::try_from(message).unwrap_err().to_string()
        };
        assert_eq!(
            message(|b| b.hash.truncate(3)),
            "blob.hash: 3 bytes, a hash has 32"
        );
        assert!(
            message(|b| b.size_bytes = u64::MAX)
                .starts_with("blob.size_bytes: 18446744073709551615")
        );
        assert!(message(|b| b.owners = vec!["ftp://x".into()]).contains("ftp://x"));
        assert!(message(|b| b.owners = vec!["grpc://h:1".into(); 9]).contains("9 entries"));
    }
}
