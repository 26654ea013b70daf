//! A blob on its way: what has come so far and from whom.

use bytes::{Bytes, BytesMut};
use retouch_proto::{BlobAddress, BlobRef, ContentHash};

/// Reserved before the first byte has come: a size is only a claim.
const RESERVED_BYTES_MAX: u64 = 64 << 20;

/// The beginning of a blob.
#[derive(Debug)]
pub(super) struct Partial {
    hash: ContentHash,
    size: u64,
    bytes: BytesMut,
    hasher: Box<blake3::Hasher>,
    sources: Vec<BlobAddress>,
}

/// What a wrong hash says about its sources.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// All bytes came from this owner: its copy is broken.
    Broken(BlobAddress),
    /// Several owners gave parts: any of them may be broken.
    Several,
}

impl Partial {
    pub(super) fn new(blob: &BlobRef) -> Self {
        Self {
            hash: blob.hash,
            size: blob.size_bytes,
            bytes: BytesMut::with_capacity(blob.size_bytes.min(RESERVED_BYTES_MAX) as usize),
            hasher: Box::default(),
            sources: Vec::new(),
        }
    }

    /// How many bytes are there: the next owner goes on from here.
    pub(super) fn offset(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(super) fn is_full(&self) -> bool {
        self.offset() == self.size
    }

    /// Appends a chunk; false if it is longer than what is missing.
    pub(super) fn append(&mut self, chunk: &[u8], source: &BlobAddress) -> bool {
        if self.offset() + chunk.len() as u64 > self.size {
            return false;
        }
        if self.sources.last() != Some(source) {
            self.sources.push(source.clone());
        }
        self.hasher.update(chunk);
        self.bytes.extend_from_slice(chunk);
        true
    }

    /// The whole blob if the hash is right; otherwise starts again from nothing
    /// and says who is to be suspected.
    pub(super) fn verify(&mut self) -> Result<Bytes, Suspicion> {
        if *self.hasher.finalize().as_bytes() == self.hash.0 {
            return Ok(std::mem::take(&mut self.bytes).freeze());
        }
        let suspicion = match self.sources.as_slice() {
            [one] => Suspicion::Broken(one.clone()),
            _ => Suspicion::Several,
        };
        self.clear();
        Err(suspicion)
    }

    /// Forgets all bytes.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.hasher.reset();
        self.sources.clear();
    }
}
