//! Gradient shards: the parts in which a gradient is summed, so that its bits
//! depend neither on how many ranks there are nor on which rank did what (A9).
//!
//! A shard's sum is made by one rank in a fixed order. The shards' sums are then
//! added in one binary tree over shard indices, whoever holds them.

use std::ops::Range;

use burn::tensor::Tensor;

use crate::metrics::host;

/// An error of whatever carries the sums between ranks.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Adds the shards of all ranks.
///
/// Every rank calls [`all_reduce`](Self::all_reduce) once per iteration with
/// vectors of one length, and gets the same bits back.
pub trait ShardReduce {
    /// This rank, counted from zero.
    fn rank(&self) -> usize;

    /// How many ranks take part.
    fn world(&self) -> usize;

    /// The sum over all shards of all ranks, in the tree of [`tree_sum`].
    ///
    /// `shards` holds the sums of the shards that [`owned`] gives to this rank,
    /// in order.
    ///
    /// # Errors
    ///
    /// If a peer is lost or disagrees about the lengths.
    fn all_reduce(&mut self, shards: Vec<Vec<f32>>) -> Result<Vec<f32>, BoxError>;

    /// As [`all_reduce`](Self::all_reduce), of sums on the device that computed them: `[len]` each.
    ///
    /// Whoever can add them where they are does so here; for all others they are read.
    ///
    /// # Errors
    ///
    /// As [`all_reduce`](Self::all_reduce).
    fn all_reduce_on_device(&mut self, shards: Vec<Tensor<1>>) -> Result<Vec<f32>, BoxError> {
        self.all_reduce(shards.into_iter().map(host).collect())
    }
}

/// One rank that holds all shards.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local;

impl ShardReduce for Local {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_reduce(&mut self, shards: Vec<Vec<f32>>) -> Result<Vec<f32>, BoxError> {
        Ok(tree_sum(shards))
    }

    fn all_reduce_on_device(&mut self, shards: Vec<Tensor<1>>) -> Result<Vec<f32>, BoxError> {
        Ok(tree_sum_on_device(shards).map_or_else(Vec::new, host))
    }
}

/// The part of `0..count` that belongs to part `index` of `parts`: contiguous
/// parts whose sizes differ by at most one.
pub fn part(count: usize, index: usize, parts: usize) -> Range<usize> {
    let border = |i: usize| (count as u128 * i as u128 / parts as u128) as usize;
    border(index)..border(index + 1)
}

/// The shards of `rank`, out of `shards`.
pub fn owned(shards: usize, rank: usize, world: usize) -> Range<usize> {
    part(shards, rank, world)
}

/// Adds vectors of one length in a fixed binary tree.
///
/// Level by level, neighbours (0, 1), (2, 3), ... of the list are added; an odd
/// last one moves up unchanged. No vectors give an empty sum.
///
/// # Panics
///
/// If the lengths differ.
pub fn tree_sum(parts: Vec<Vec<f32>>) -> Vec<f32> {
    let sum = tree(parts, |mut left, right| {
        add_into(&mut left, &right);
        left
    });
    sum.unwrap_or_default()
}

/// [`tree_sum`] of vectors on a device, where the sum stays; none of no vectors.
///
/// # Panics
///
/// If the lengths differ.
pub fn tree_sum_on_device(parts: Vec<Tensor<1>>) -> Option<Tensor<1>> {
    tree(parts, |left, right| left + right)
}

fn tree<T>(mut parts: Vec<T>, add: impl Fn(T, T) -> T) -> Option<T> {
    while parts.len() > 1 {
        let mut level = Vec::with_capacity(parts.len().div_ceil(2));
        let mut rest = parts.into_iter();
        while let Some(left) = rest.next() {
            level.push(match rest.next() {
                Some(right) => add(left, right),
                None => left,
            });
        }
        parts = level;
    }
    parts.pop()
}

/// `sum += part`, element by element.
///
/// # Panics
///
/// If the lengths differ.
pub fn add_into(sum: &mut [f32], part: &[f32]) {
    assert_eq!(sum.len(), part.len(), "shard sums have one length");
    for (s, p) in sum.iter_mut().zip(part) {
        *s += p;
    }
}

/// Carries one value per (shard, slot) through the all-reduce.
///
/// Every shard writes its own row of an otherwise zero table, which travels at
/// the end of its gradient: adding zeros changes nothing, so the sum of the
/// tables is all rows side by side, exactly.
#[derive(Clone, Copy, Debug)]
pub struct Ledger {
    /// Number of shards, one row each.
    pub shards: usize,
    /// Values per shard.
    pub slots: usize,
}

impl Ledger {
    /// Length of the table.
    pub fn len(&self) -> usize {
        self.shards * self.slots
    }

    /// Whether the table holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The table with the row of `shard`, for the end of its gradient.
    ///
    /// # Panics
    ///
    /// If `row` does not hold one value per slot.
    pub fn table(&self, shard: usize, row: &[f32]) -> Vec<f32> {
        assert_eq!(row.len(), self.slots, "one value per slot");
        let mut table = vec![0.0; self.len()];
        table[shard * self.slots..][..self.slots].copy_from_slice(row);
        table
    }

    /// Takes the rows off the end of a reduced sum, in shard order.
    ///
    /// # Panics
    ///
    /// If the sum is shorter than the table.
    pub fn split_off(&self, sum: &mut Vec<f32>) -> Vec<Vec<f32>> {
        let table = sum.split_off(sum.len() - self.len());
        table.chunks(self.slots).map(<[f32]>::to_vec).collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn parts_cover_everything_once() {
        for (count, parts) in [(96, 8), (70, 8), (3, 8), (0, 4), (7, 7)] {
            let all: Vec<usize> = (0..parts).flat_map(|i| part(count, i, parts)).collect();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn tree_is_fixed_by_shard_index() {
        let shards: Vec<Vec<f32>> = (0..5).map(|i| vec![0.1 + i as f32 * 1e-3]).collect();
        let s = |i: usize| shards[i][0];
        let expected = ((s(0) + s(1)) + (s(2) + s(3))) + s(4);
        assert_eq!(tree_sum(shards.clone()), vec![expected]);
        let tensor = |shard: &Vec<f32>| Tensor::from_floats(&shard[..], &Device::flex());
        let on_device = tree_sum_on_device(shards.iter().map(tensor).collect());
        assert_eq!(host(on_device.unwrap()), vec![expected]);
    }

    #[test]
    fn ledger_rows_survive_the_sum_exactly() {
        let ledger = Ledger {
            shards: 3,
            slots: 2,
        };
        let shard = |i: usize| [vec![1.0; 4], ledger.table(i, &[0.1 * i as f32, -7.3])].concat();
        let mut sum = tree_sum((0..3).map(shard).collect());
        let rows = ledger.split_off(&mut sum);
        assert_eq!(sum, vec![3.0; 4]);
        assert_eq!(
            rows,
            vec![vec![0.0, -7.3], vec![0.1, -7.3], vec![0.2, -7.3]]
        );
    }
}
