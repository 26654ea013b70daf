//! Whom an owner serves one blob, and to whom it sends the others: so owners become a tree. No IO.
//!
//! An owner that served everybody at once would give each a sliver, and nobody would be done and able to
//! pass the blob on until all are. It serves a few, who are owners when they have it, and tells
//! later callers of those. n workers have the blob after about log n transfers of its length.

use std::collections::{HashMap, VecDeque};

use retouch_proto::{BlobAddress, ContentHash};

/// Callers that get one blob at a time.
pub(super) const SERVED_AT_ONCE_MAX: usize = 4;
/// Owners that one busy answer names.
pub(super) const NAMED_MAX: usize = 4;
/// Callers that are remembered as owners of one blob.
const REMEMBERED_MAX: usize = 64;
/// Audiences of fewer blobs are not worth a search for those that are over.
const BLOBS_MIN: usize = 64;

/// The callers of one blob.
#[derive(Debug, Default)]
pub(super) struct Audience {
    serving: usize,
    /// They have the whole blob, oldest first.
    served: VecDeque<BlobAddress>,
    /// Whose turn it is to be named.
    turn: usize,
}

impl Audience {
    /// Begins to serve a caller, or names others that may.
    pub(super) fn enter(&mut self) -> Result<(), Vec<BlobAddress>> {
        if self.serving < SERVED_AT_ONCE_MAX {
            self.serving += 1;
            return Ok(());
        }
        let count = self.served.len();
        let named = (0..count.min(NAMED_MAX)).map(|i| &self.served[(self.turn + i) % count]);
        let named = named.cloned().collect();
        self.turn = self.turn.wrapping_add(NAMED_MAX);
        Err(named)
    }

    /// Ends serving a caller, which is an owner now if it has an address and got everything.
    pub(super) fn leave(&mut self, owner: Option<BlobAddress>) {
        self.serving = self.serving.saturating_sub(1);
        let Some(owner) = owner.filter(|owner| !self.served.contains(owner)) else {
            return;
        };
        if self.served.len() == REMEMBERED_MAX {
            self.served.pop_front();
        }
        self.served.push_back(owner);
    }
}

/// The callers of all blobs.
#[derive(Debug, Default)]
pub(super) struct Audiences {
    of: HashMap<ContentHash, Audience>,
    /// With so many blobs those that are not held any more are looked for.
    search_at: usize,
}

impl Audiences {
    /// As [`Audience::enter`]; audiences of blobs that are not held any more are forgotten.
    pub(super) fn enter(
        &mut self,
        hash: ContentHash,
        is_held: impl Fn(&ContentHash) -> bool,
    ) -> Result<(), Vec<BlobAddress>> {
        if self.of.len() >= self.search_at.max(BLOBS_MIN) {
            self.of
                .retain(|hash, audience| audience.serving > 0 || is_held(hash));
            self.search_at = 2 * self.of.len();
        }
        self.of.entry(hash).or_default().enter()
    }

    /// As [`Audience::leave`].
    pub(super) fn leave(&mut self, hash: &ContentHash, owner: Option<BlobAddress>) {
        if let Some(audience) = self.of.get_mut(hash) {
            audience.leave(owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(index: usize) -> BlobAddress {
        BlobAddress::Grpc(format!("10.0.0.1:{index}"))
    }

    #[test]
    fn a_few_are_served_and_the_others_learn_of_them() {
        let mut audience = Audience::default();
        for _ in 0..SERVED_AT_ONCE_MAX {
            assert_eq!(audience.enter(), Ok(()));
        }
        assert_eq!(audience.enter(), Err(vec![]));
        for index in 0..SERVED_AT_ONCE_MAX {
            audience.leave(Some(address(index)));
            assert_eq!(audience.enter(), Ok(()));
        }
        let named = audience.enter().unwrap_err();
        assert_eq!(named, (0..4).map(address).collect::<Vec<_>>());
        audience.leave(None);
        assert_eq!(audience.enter(), Ok(()));
        for index in 0..1000 {
            audience.leave(Some(address(index)));
        }
        assert_eq!(audience.served.len(), REMEMBERED_MAX);
    }

    #[test]
    fn audiences_end_with_their_blobs() {
        let mut audiences = Audiences::default();
        let hash = |index: u32| ContentHash::of(&index.to_le_bytes());
        for index in 0..10_000_u32 {
            // An iteration's blobs are held until it is committed.
            let held: Vec<ContentHash> = (index.saturating_sub(10)..index).map(hash).collect();
            let is_held = |hash: &ContentHash| held.contains(hash);
            audiences.enter(hash(index), is_held).unwrap();
            audiences.leave(&hash(index), Some(address(1)));
        }
        assert!(audiences.of.len() <= BLOBS_MIN, "{}", audiences.of.len());
    }
}
