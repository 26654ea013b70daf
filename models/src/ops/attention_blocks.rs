//! How many queries go back through attention at once where their scores are computed again (GPUs).

/// How much of scores, probabilities and the gradients of both exists at once.
const WORKSPACE_BYTES: usize = 3 << 29;
/// Blocks of queries are multiples of it.
const QUERIES: usize = 64;

/// The scores of an attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scores {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    /// Bytes of a number of the inputs.
    pub(crate) number: usize,
}

impl Scores {
    /// Queries of a block: all, or as many as leave blocks of one size within the workspace.
    pub(crate) fn queries_at_once(self) -> usize {
        let fit = WORKSPACE_BYTES / self.row_bytes().max(1) / QUERIES * QUERIES;
        let blocks = self.queries.div_ceil(fit.max(QUERIES));
        self.queries.div_ceil(blocks).next_multiple_of(QUERIES)
    }

    /// What a block takes beside inputs and results.
    pub(crate) fn workspace_bytes(self) -> usize {
        self.queries_at_once().min(self.queries) * self.row_bytes()
    }

    /// Of one query: scores and the gradients of probabilities in f32, probabilities and the gradients of scores as the inputs.
    fn row_bytes(self) -> usize {
        self.batch * self.heads * self.keys * (8 + 2 * self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workspaces_are_bounded_and_whole_where_they_fit() {
        // FLUX.1-Kontext at 512 x 512, at a megapixel, and in numbers that no card has room for.
        let of = |batch, tokens| Scores {
            batch,
            heads: 24,
            queries: tokens,
            keys: tokens,
            number: 2,
        };
        let small = of(1, 2176);
        assert_eq!(small.workspace_bytes(), 24 * 2176 * 2176 * 12);
        let large = of(1, 8320).workspace_bytes();
        assert!(
            large <= WORKSPACE_BYTES && large > WORKSPACE_BYTES / 2,
            "{large} bytes"
        );
        assert_eq!(of(100, 33_000).queries_at_once(), QUERIES);
    }
}
