//! Recursive halving and doubling: the fast path for balanced ranks.
//!
//! In step `l` a rank exchanges halves of its part with the rank whose number
//! differs in bit `l`, so that after it the part holds the node of level `l + 1`
//! above both. Each rank sends and receives `2 (world - 1) / world` of the vector.

use std::ops::Range;

use super::{error::CollectiveError, tcp::TcpCollective};

/// Replaces `sum`, this rank's node, by the root of the tree.
pub(super) fn all_reduce(tcp: &mut TcpCollective, sum: &mut [f32]) -> Result<(), CollectiveError> {
    let mut parts = Vec::new();
    let mut part = 0..sum.len();
    for level in 0..tcp.world().ilog2() {
        parts.push(part.clone());
        part = reduce_half(tcp, level, part, sum)?;
    }
    for (level, whole) in parts.into_iter().enumerate().rev() {
        gather_half(tcp, level as u32, part, &whole, sum)?;
        part = whole;
    }
    Ok(())
}

fn reduce_half(
    tcp: &mut TcpCollective,
    level: u32,
    part: Range<usize>,
    sum: &mut [f32],
) -> Result<Range<usize>, CollectiveError> {
    let partner = tcp.rank() ^ (1 << level);
    let middle = part.start + part.len() / 2;
    let (lower, upper) = sum[part.clone()].split_at_mut(middle - part.start);
    // Both add the other's half to their own, one of them the left node to the right one: f32 addition commutes, so
    // the bits are the tree's all the same.
    if tcp.rank() < partner {
        tcp.exchange(partner, upper, partner, |link, seq| {
            link.receive_add(seq, lower)
        })?;
        return Ok(part.start..middle);
    }
    tcp.exchange(partner, lower, partner, |link, seq| {
        link.receive_add(seq, upper)
    })?;
    Ok(middle..part.end)
}

fn gather_half(
    tcp: &mut TcpCollective,
    level: u32,
    held: Range<usize>,
    whole: &Range<usize>,
    sum: &mut [f32],
) -> Result<(), CollectiveError> {
    let partner = tcp.rank() ^ (1 << level);
    let is_lower = tcp.rank() < partner;
    let middle = if is_lower { held.end } else { held.start };
    let (lower, upper) = sum[whole.clone()].split_at_mut(middle - whole.start);
    let (held, missing) = if is_lower {
        (lower, upper)
    } else {
        (upper, lower)
    };
    tcp.exchange(partner, held, partner, |link, seq| {
        link.receive_into(seq, missing)
    })
}
