//! Tags that show that a frame is the peer's, whole, and the next one.

use std::io;

/// Bytes of a tag.
pub(super) const TAG_BYTES: usize = 16;

/// How much of what ranks say to each other nobody else can make or change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sealing {
    /// All of it.
    #[default]
    Everything,
    /// Who they are, and the header of every frame, but not the gradients behind it: for networks
    /// that can be trusted, where the tags would take longer than the sums.
    Headers,
}

/// One direction of a connection: makes or checks the tag of one frame after the other.
#[derive(Clone)]
pub(super) struct Seal {
    key: [u8; 32],
    sealing: Sealing,
    /// Frames so far: one that is repeated, left out or moved has a wrong tag.
    count: u64,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seal")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl Seal {
    pub(super) fn new(key: [u8; 32]) -> Self {
        Self {
            key,
            sealing: Sealing::Everything,
            count: 0,
        }
    }

    /// The same from the next frame on, for more or less of it.
    pub(super) fn with(self, sealing: Sealing) -> Self {
        Self { sealing, ..self }
    }

    /// The tag of the next frame.
    pub(super) fn tag(&mut self, header: &[u8], body: &[u8]) -> [u8; TAG_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&self.count.to_le_bytes());
        hasher.update(header);
        if self.sealing == Sealing::Everything {
            hasher.update(body);
        }
        self.count += 1;
        let mut tag = [0; TAG_BYTES];
        hasher.finalize_xof().fill(&mut tag);
        tag
    }

    /// Whether the tag is that of the next frame.
    pub(super) fn check(
        &mut self,
        header: &[u8],
        body: &[u8],
        found: [u8; TAG_BYTES],
    ) -> io::Result<()> {
        let expected = self.tag(header, body);
        // All bytes are looked at, so that the time taken does not tell how many were right.
        let differences = expected.iter().zip(found).fold(0, |d, (a, b)| d | (a ^ b));
        if differences == 0 {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a frame's tag is wrong: it was changed on its way, or is not the other rank's",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_next_frame_of_the_same_key_is_taken() {
        let (mut ours, mut theirs) = (Seal::new([1; 32]), Seal::new([1; 32]));
        let first = ours.tag(b"he", b"llo");
        let second = ours.tag(b"hello", b"");
        assert_ne!(first, second);
        theirs.check(b"he", b"llo", first).expect("the same bytes");
        assert!(
            theirs.clone().check(b"he", b"llo", first).is_err(),
            "repeated"
        );
        assert!(
            theirs.clone().check(b"hellO", b"", second).is_err(),
            "changed"
        );
        assert!(
            Seal::new([2; 32]).check(b"he", b"llo", first).is_err(),
            "another key"
        );
        theirs.check(b"hello", b"", second).expect("the next one");
    }

    #[test]
    fn headers_are_sealed_even_where_bodies_are_not() {
        let seal = || Seal::new([1; 32]).with(Sealing::Headers);
        let tag = seal().tag(b"header", b"body");
        seal().check(b"header", b"bodY", tag).expect("not covered");
        assert!(seal().check(b"headeR", b"body", tag).is_err());
    }
}
