//! Which card each rank is on, told over the sockets before NCCL, which hangs or fails in its own words where two are on one.

use super::super::{error::CollectiveError, tcp::TcpCollective};
use crate::shards::owned;

/// A card's identity, the same in all processes.
pub(super) type Identity = [u8; 16];

const BYTES: usize = size_of::<Identity>();

/// The identities of all ranks' cards, in rank order.
///
/// # Errors
///
/// If a rank is lost or late.
pub(super) fn identities(
    control: &mut TcpCollective,
    own: Identity,
) -> Result<Vec<Identity>, CollectiveError> {
    let (rank, world) = (control.rank(), control.world());
    // A sum with zeros rather than a protocol of its own: bytes are exact in f32.
    let mut row = vec![0.0; world * BYTES];
    row[rank * BYTES..][..BYTES].copy_from_slice(&own.map(f32::from));
    let mut shards = vec![vec![0.0; row.len()]; owned(control.shards(), rank, world).len() - 1];
    shards.push(row);
    let all = control.all_reduce(shards)?;
    let identity = |row: &[f32]| std::array::from_fn(|index| row[index] as u8);
    Ok(all.chunks(BYTES).map(identity).collect())
}

/// The first two ranks that are on one card. All ranks find the same, so that none waits for those two in NCCL.
pub(super) fn twins(identities: &[Identity]) -> Option<(usize, usize)> {
    let mut ranks = identities.iter().enumerate();
    ranks.find_map(|(rank, identity)| {
        let first = identities.iter().position(|other| other == identity)?;
        (first < rank).then_some((first, rank))
    })
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use retouch_credentials::Handshake;

    use super::*;
    use crate::collective::{Aborter, Deadlines, Listener, Membership, Sealing};

    /// What ranks with these cards learn of one another.
    fn met(cards: &[u8]) -> Vec<Vec<Identity>> {
        let patience = Duration::from_secs(20);
        let deadlines = Deadlines {
            join: patience,
            arrival: patience,
            stall: patience,
        };
        let bind = || {
            let address = SocketAddr::from(([127, 0, 0, 1], 0));
            Listener::bind(address, Handshake::open()).expect("a free port")
        };
        let listeners: Vec<Listener> = cards.iter().map(|_| bind()).collect();
        let peers: Vec<SocketAddr> = listeners.iter().map(Listener::address).collect();
        let spawn = |(rank, (listener, card)): (usize, (Listener, u8))| {
            let membership = Membership {
                epoch: 1,
                rank,
                peers: peers.clone(),
                shards: 7,
                sealing: Sealing::Everything,
            };
            std::thread::spawn(move || {
                let aborter = Aborter::default();
                let joined = TcpCollective::join(&listener, membership, deadlines, &aborter);
                identities(&mut joined.expect("all ranks come"), [card; BYTES])
                    .expect("all ranks stay")
            })
        };
        let ranks = listeners.into_iter().zip(cards.iter().copied()).enumerate();
        let threads: Vec<_> = ranks.map(spawn).collect();
        let learned = threads.into_iter().map(|thread| thread.join());
        learned
            .map(|learned| learned.expect("a rank panicked"))
            .collect()
    }

    #[test]
    fn every_rank_learns_every_card_and_finds_the_same_twins() {
        for (cards, twins_found) in [
            (&[9][..], None),
            (&[7, 255, 0], None),
            (&[7, 0, 0], Some((1, 2))),
            (&[1, 1, 1], Some((0, 1))),
        ] {
            let expected: Vec<Identity> = cards.iter().map(|card| [*card; BYTES]).collect();
            for learned in met(cards) {
                assert_eq!(learned, expected);
                assert_eq!(twins(&learned), twins_found);
            }
        }
    }
}
