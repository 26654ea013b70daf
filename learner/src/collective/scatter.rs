//! The general path, for any number of ranks and shards.
//!
//! Rank `j` sums part `j` of the vector: every rank sends it its nodes' values of
//! that part, rank `j` adds them in the tree and sends the sum to everyone.

use super::{
    error::CollectiveError,
    plan::{Node, nodes, sum_nodes, sum_tree},
    tcp::TcpCollective,
};
use crate::shards::{owned, part};

/// The root of the tree from this rank's shards.
pub(super) fn all_reduce(
    tcp: &mut TcpCollective,
    shards: Vec<Vec<f32>>,
    elements: usize,
) -> Result<Vec<f32>, CollectiveError> {
    let (rank, world, count) = (tcp.rank(), tcp.world(), tcp.shards());
    let own = nodes(count, rank, world);
    let sums = sum_nodes(owned(count, rank, world).start, shards, &own);
    let mut parts: Vec<(Node, Vec<f32>)> = Vec::with_capacity(2 * world);
    let mine = part(elements, rank, world);
    parts.extend(
        own.into_iter()
            .zip(sums.iter().map(|sum| sum[mine.clone()].to_vec())),
    );
    for step in 1..world {
        let (to, from) = neighbours(rank, step, world);
        parts.extend(swap_nodes(tcp, &sums, elements, to, from)?);
    }
    // The tree's order, whatever order they came in (A9).
    parts.sort_by_key(|(node, _)| node.start);
    gather(tcp, sum_tree(count, parts), elements)
}

/// The ranks to send to and to receive from, so that in each step all pairs differ.
fn neighbours(rank: usize, step: usize, world: usize) -> (usize, usize) {
    ((rank + step) % world, (rank + world - step) % world)
}

/// Sends the values that `to` sums, and receives those that this rank sums.
fn swap_nodes(
    tcp: &mut TcpCollective,
    sums: &[Vec<f32>],
    elements: usize,
    to: usize,
    from: usize,
) -> Result<Vec<(Node, Vec<f32>)>, CollectiveError> {
    let (rank, world) = (tcp.rank(), tcp.world());
    let theirs = part(elements, to, world);
    let outgoing: Vec<f32> = sums
        .iter()
        .flat_map(|sum| &sum[theirs.clone()])
        .copied()
        .collect();
    let nodes = nodes(tcp.shards(), from, world);
    let length = part(elements, rank, world).len();
    let mut incoming = vec![0.0; nodes.len() * length];
    tcp.exchange(to, &outgoing, from, |link, seq| {
        link.receive_into(seq, &mut incoming)
    })?;
    let values = (0..nodes.len()).map(|i| incoming[i * length..(i + 1) * length].to_vec());
    Ok(nodes.into_iter().zip(values).collect())
}

/// Sends this rank's sum to everyone, and receives all others'.
fn gather(
    tcp: &mut TcpCollective,
    mine: Vec<f32>,
    elements: usize,
) -> Result<Vec<f32>, CollectiveError> {
    let (rank, world) = (tcp.rank(), tcp.world());
    let mut total = vec![0.0; elements];
    for step in 1..world {
        let (to, from) = neighbours(rank, step, world);
        let missing = &mut total[part(elements, from, world)];
        tcp.exchange(to, &mine, from, |link, seq| link.receive_into(seq, missing))?;
    }
    total[part(elements, rank, world)].copy_from_slice(&mine);
    Ok(total)
}
