//! Who holds which part of the summation tree.
//!
//! The tree stands over shard indices `0..shards`: node `i` of level `l` is the
//! sum of shards `i * 2^l .. (i + 1) * 2^l`, cut at the end. A rank holds a
//! contiguous run of shards ([`owned`]), which is a short list of whole nodes.

use std::ops::Range;

use crate::shards::{add_into, owned, tree_sum};

/// A whole node of the tree: the shards below it.
pub(super) type Node = Range<usize>;

/// The fewest nodes that make up the shards of `rank`, in order.
pub(super) fn nodes(shards: usize, rank: usize, world: usize) -> Vec<Node> {
    let Range { mut start, end } = owned(shards, rank, world);
    let mut nodes = Vec::new();
    while start < end {
        let node = largest_node(start, end, shards);
        start = node.end;
        nodes.push(node);
    }
    nodes
}

fn largest_node(start: usize, end: usize, shards: usize) -> Node {
    let mut node = start..start + 1;
    let mut size = 1;
    // Doubling keeps the node whole as long as it begins at a multiple of its size.
    while start.is_multiple_of(size * 2) && node.end < shards {
        size *= 2;
        let wider = start..(start + size).min(shards);
        if wider.end > end {
            break;
        }
        node = wider;
    }
    node
}

/// Whether every rank holds one node and the ranks above pair up: then sums can
/// be halved and doubled.
pub(super) fn is_balanced(shards: usize, world: usize) -> bool {
    let each = shards / world.max(1);
    world.is_power_of_two() && each.is_power_of_two() && each * world == shards
}

/// The ranks with which `rank` exchanges messages.
pub(super) fn partners(shards: usize, rank: usize, world: usize) -> Vec<usize> {
    if !is_balanced(shards, world) {
        return (0..world).filter(|&other| other != rank).collect();
    }
    (0..world.ilog2())
        .map(|level| rank ^ (1 << level))
        .collect()
}

/// Sums the shards that begin at `first` into the given nodes.
pub(super) fn sum_nodes(first: usize, mut shards: Vec<Vec<f32>>, nodes: &[Node]) -> Vec<Vec<f32>> {
    let mut sums = Vec::with_capacity(nodes.len());
    let mut end = first + shards.len();
    for node in nodes.iter().rev() {
        let tail = shards.split_off(shards.len() - (end - node.start));
        end = node.start;
        sums.push(tree_sum(tail));
    }
    sums.reverse();
    sums
}

/// Adds the sums of nodes, which cover all shards in order, up to the root.
pub(super) fn sum_tree(shards: usize, mut parts: Vec<(Node, Vec<f32>)>) -> Vec<f32> {
    let mut size = 1;
    while parts.len() > 1 {
        size *= 2;
        parts = join_siblings(parts, size, shards);
    }
    parts.pop().map(|(_, sum)| sum).unwrap_or_default()
}

/// Adds neighbours that together are one node of `size` shards.
fn join_siblings(
    parts: Vec<(Node, Vec<f32>)>,
    size: usize,
    shards: usize,
) -> Vec<(Node, Vec<f32>)> {
    let mut joined: Vec<(Node, Vec<f32>)> = Vec::with_capacity(parts.len());
    for (node, sum) in parts {
        match joined.last_mut() {
            Some((left, total)) if are_siblings(left, &node, size, shards) => {
                add_into(total, &sum);
                left.end = node.end;
            }
            _ => joined.push((node, sum)),
        }
    }
    joined
}

fn are_siblings(left: &Node, right: &Node, size: usize, shards: usize) -> bool {
    left.start.is_multiple_of(size)
        && right.start == left.start + size / 2
        && left.end == right.start
        && right.end == (left.start + size).min(shards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_cover_each_shard_once() {
        for shards in 1..20 {
            for world in 1..12 {
                let all: Vec<usize> = (0..world)
                    .flat_map(|r| nodes(shards, r, world))
                    .flatten()
                    .collect();
                assert_eq!(
                    all,
                    (0..shards).collect::<Vec<_>>(),
                    "{shards} shards, {world} ranks"
                );
            }
        }
    }

    #[test]
    fn balanced_ranks_hold_one_node() {
        assert!(is_balanced(8, 1) && is_balanced(8, 4) && is_balanced(8, 8));
        assert!(!is_balanced(8, 3) && !is_balanced(6, 2) && !is_balanced(2, 4));
        assert_eq!(nodes(8, 1, 4), vec![2..4]);
        assert_eq!(partners(8, 1, 4), vec![0, 3]);
    }

    #[test]
    fn uneven_ranks_sum_in_the_same_tree() {
        let shard = |i: usize| vec![0.1 + 1.7_f32.powi(i as i32), -0.3 * i as f32];
        for shards in 1..20 {
            let expected = tree_sum((0..shards).map(shard).collect());
            for world in 1..12 {
                let parts = (0..world).flat_map(|rank| {
                    let nodes = nodes(shards, rank, world);
                    let run = owned(shards, rank, world);
                    let sums = sum_nodes(run.start, run.map(shard).collect(), &nodes);
                    nodes.into_iter().zip(sums)
                });
                assert_eq!(
                    sum_tree(shards, parts.collect()),
                    expected,
                    "{shards} shards, {world} ranks"
                );
            }
        }
    }
}
