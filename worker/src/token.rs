//! The join token that every caller presents.

use retouch_proto::TOKEN_METADATA_KEY;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataMap, MetadataValue, errors::InvalidMetadataValue},
};

/// Admits callers that present the right token.
#[derive(Clone, Debug)]
pub struct TokenCheck(blake3::Hash);

impl TokenCheck {
    /// Admits callers with this token.
    pub fn new(token: &str) -> Self {
        Self(blake3::hash(token.as_bytes()))
    }

    /// Checks a request's metadata, in time that does not depend on the token.
    ///
    /// # Errors
    ///
    /// `Unauthenticated` if the token is missing or another one.
    pub fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let Some(token) = metadata.get(TOKEN_METADATA_KEY) else {
            return Err(Status::unauthenticated(format!(
                "metadata {TOKEN_METADATA_KEY} is missing"
            )));
        };
        if blake3::hash(token.as_bytes()) == self.0 {
            return Ok(());
        }
        Err(Status::unauthenticated("the join token is not this run's"))
    }
}

/// The token as this process presents it.
#[derive(Clone, Debug)]
pub(crate) struct Token(MetadataValue<Ascii>);

impl Token {
    pub(crate) fn new(token: &str) -> Result<Self, InvalidMetadataValue> {
        let mut value = MetadataValue::try_from(token)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    /// A request that carries the token.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert(TOKEN_METADATA_KEY, self.0.clone());
        request
    }
}
