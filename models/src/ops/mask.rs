//! Which keys a query may look at.

/// Which keys a query may look at in [`attention`](super::attention()).
///
/// A query that may look at no key at all gets zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AttentionMask {
    /// Every query sees every key.
    #[default]
    None,
    /// Query `i` of `S` sees the keys up to `i + Sk - S`: the queries are the last ones of the keys.
    Causal,
    /// In batch row `b`, only the first `lengths[b]` keys are real.
    KeyPadding {
        /// Number of real keys of each batch row.
        lengths: Vec<usize>,
    },
    /// Causal, and in batch row `b` only the keys `start[b]..end[b]` are real, whichever side is padded.
    CausalKeyRange {
        /// First real key of each batch row.
        start: Vec<usize>,
        /// One past the last real key of each batch row.
        end: Vec<usize>,
    },
    /// Block diagonal: the boundaries `0, n0, n0 + n1, ..., S` (`cu_seqlens`) of segments that see only themselves.
    Segments(Vec<usize>),
}

/// The lengths of the problem a mask is applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lengths {
    pub(crate) batch: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
}

impl AttentionMask {
    /// Panics when the mask does not fit the problem, as a shape error does.
    pub(crate) fn check(&self, lengths: Lengths) {
        let Lengths {
            batch,
            queries,
            keys,
        } = lengths;
        match self {
            Self::None => {}
            Self::Causal => assert!(
                queries <= keys,
                "a causal mask has {queries} queries for {keys} keys, it may have at most as many"
            ),
            Self::KeyPadding { lengths } => {
                assert_eq!(lengths.len(), batch, "one key length per batch row");
                assert!(lengths.iter().all(|&length| length <= keys));
            }
            Self::CausalKeyRange { start, end } => {
                assert!(queries <= keys, "more queries than keys under causality");
                assert_eq!(start.len(), batch, "one key range per batch row");
                assert_eq!(end.len(), batch, "one key range per batch row");
                assert!(end.iter().all(|&end| end <= keys));
            }
            Self::Segments(boundaries) => check_segments(boundaries, lengths),
        }
    }

    /// The keys that query `query` of batch row `batch` may look at; every mask allows one range.
    pub(crate) fn keys_of(
        &self,
        batch: usize,
        query: usize,
        lengths: Lengths,
    ) -> std::ops::Range<usize> {
        let causal_end = query + 1 + lengths.keys.saturating_sub(lengths.queries);
        match self {
            Self::None => 0..lengths.keys,
            Self::Causal => 0..causal_end,
            Self::KeyPadding { lengths } => 0..lengths[batch],
            Self::CausalKeyRange { start, end } => start[batch]..end[batch].min(causal_end),
            Self::Segments(boundaries) => segment_of(boundaries, query),
        }
    }
}

fn check_segments(boundaries: &[usize], lengths: Lengths) {
    assert_eq!(
        lengths.queries, lengths.keys,
        "segments are over self-attention"
    );
    assert_eq!(
        boundaries.first(),
        Some(&0),
        "segment boundaries start at 0"
    );
    assert_eq!(
        boundaries.last(),
        Some(&lengths.queries),
        "segment boundaries end at the sequence length"
    );
    assert!(boundaries.is_sorted(), "segment boundaries ascend");
}

fn segment_of(boundaries: &[usize], position: usize) -> std::ops::Range<usize> {
    let after = boundaries.partition_point(|&boundary| boundary <= position);
    boundaries[after - 1]..boundaries[after]
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIVE: Lengths = Lengths {
        batch: 2,
        queries: 5,
        keys: 5,
    };

    #[test]
    fn key_ranges_follow_the_mask() {
        let range = AttentionMask::CausalKeyRange {
            start: vec![2, 0],
            end: vec![5, 3],
        };
        assert_eq!(range.keys_of(0, 3, FIVE), 2..4);
        assert!(range.keys_of(0, 0, FIVE).is_empty());
        assert_eq!(range.keys_of(1, 4, FIVE), 0..3);
    }

    #[test]
    fn causal_queries_are_the_last_keys() {
        let lengths = Lengths { queries: 2, ..FIVE };
        assert_eq!(AttentionMask::Causal.keys_of(0, 0, lengths), 0..4);
        assert_eq!(AttentionMask::Causal.keys_of(0, 1, lengths), 0..5);
    }

    #[test]
    fn empty_segments_are_skipped() {
        let mask = AttentionMask::Segments(vec![0, 2, 2, 5]);
        mask.check(FIVE);
        assert_eq!(mask.keys_of(0, 1, FIVE), 0..2);
        assert_eq!(mask.keys_of(0, 2, FIVE), 2..5);
    }
}
