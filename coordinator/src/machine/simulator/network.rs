//! The network of the virtual world: who is cut off from whom, and until when.

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
}

/// Which ways are cut.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cut {
    pub(super) up_until_ms: u64,
    pub(super) down_until_ms: u64,
    /// Cut off from workers that are not cut off.
    pub(super) peers_until_ms: u64,
}

/// The cuts of every worker.
pub(super) struct Network {
    pub(super) cuts: Vec<Cut>,
}

impl Network {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            cuts: vec![Cut::default(); workers],
        }
    }

    pub(super) fn is_cut(&self, worker: usize, way: Way, now_ms: u64) -> bool {
        let cut = self.cuts[worker];
        now_ms
            < match way {
                Way::Up => cut.up_until_ms,
                Way::Down => cut.down_until_ms,
            }
    }

    /// Whether one can't fetch from the other.
    pub(super) fn are_apart(&self, a: usize, b: usize, now_ms: u64) -> bool {
        let cut = |worker: usize| now_ms < self.cuts[worker].peers_until_ms;
        a != b && cut(a) != cut(b)
    }
}
