//! NCCL as it is on this machine. Its library has to be there (`RETOUCH_NCCL`); without a
//! GPU it can be loaded and can mint, and joining says what is missing.

use std::{
    net::SocketAddr,
    ops::Range,
    time::{Duration, Instant},
};

use retouch_credentials::Handshake;

use super::*;
use crate::collective::Sealing;
use crate::shards::owned;

const DEADLINES: Deadlines = Deadlines {
    join: Duration::from_secs(60),
    arrival: Duration::from_secs(60),
    stall: Duration::from_secs(60),
};
/// "At once", with room for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(10);
const SHARDS: usize = 8;

fn listener() -> Listener {
    Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), Handshake::open()).expect("a free port")
}

/// Joins with one rank per thread, each on its own device, and gives what each made of it.
fn run_ranks<T: Send + 'static>(
    world: usize,
    body: impl Fn(usize, Result<NcclCollective, CollectiveError>) -> T + Clone + Send + 'static,
) -> Vec<T> {
    run_some_ranks(0..world, world, body)
}

/// The same where only some of the ranks come.
fn run_some_ranks<T: Send + 'static>(
    ranks: Range<usize>,
    world: usize,
    body: impl Fn(usize, Result<NcclCollective, CollectiveError>) -> T + Clone + Send + 'static,
) -> Vec<T> {
    let unique_id = mint().expect("an id");
    let listeners: Vec<Listener> = (0..world).map(|_| listener()).collect();
    let peers: Vec<SocketAddr> = listeners.iter().map(Listener::address).collect();
    let spawn = |(rank, listener): (usize, Listener)| {
        let (peers, body) = (peers.clone(), body.clone());
        std::thread::spawn(move || {
            let membership = Membership {
                epoch: 1,
                rank,
                peers,
                shards: SHARDS,
                sealing: Sealing::Everything,
            };
            let here = NcclRank {
                device: rank,
                unique_id,
            };
            let aborter = Aborter::default();
            body(
                rank,
                NcclCollective::join(&listener, membership, here, DEADLINES, &aborter),
            )
        })
    };
    let coming = listeners
        .into_iter()
        .enumerate()
        .filter(|(rank, _)| ranks.contains(rank));
    let threads: Vec<_> = coming.map(spawn).collect();
    let joined = threads.into_iter().map(|thread| thread.join());
    joined
        .map(|result| result.expect("a rank panicked"))
        .collect()
}

#[test]
fn the_library_is_loaded_and_mints_ids() {
    let found = find().expect("the library");
    assert!(found.version >= 21_700);
    assert!(found.path.is_some_and(|path| path.is_file()));
    let (first, second) = (mint().expect("an id"), mint().expect("an id"));
    assert_ne!(first, second, "every epoch has its own");
}

#[test]
fn a_library_that_is_not_there_is_named_with_what_to_do() {
    let error = Library::load("/nowhere/libnccl.so.2").unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("/nowhere/libnccl.so.2") && text.contains("RETOUCH_NCCL"),
        "{text}"
    );
    assert!(error.is_lasting());
}

#[test]
fn nccl_refuses_a_device_that_does_not_exist_at_once() {
    if gpu::count() > 0 {
        return sums_are_the_same_on_every_rank(gpu::count().min(SHARDS));
    }
    let begin = Instant::now();
    let id = mint().expect("an id");
    let library = Library::get().expect("NCCL");
    let error = Communicator::start(library, &id, 0, 2).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("ncclCommInitRankConfig") && text.contains("CUDA"),
        "{text}"
    );
    assert!(begin.elapsed() < AT_ONCE, "took {:?}", begin.elapsed());
}

#[test]
fn joining_without_a_device_names_rank_and_device_at_once() {
    // Ranks with a device would rightly wait for those without.
    let ranks = gpu::count()..gpu::count() + 2;
    let begin = Instant::now();
    let errors = run_some_ranks(ranks.clone(), ranks.end, |_, joined| joined.err());
    assert!(begin.elapsed() < AT_ONCE, "took {:?}", begin.elapsed());
    for (rank, error) in ranks.zip(errors) {
        let error = error.expect("there is no such device");
        assert!(error.is_lasting(), "{error}");
        assert_eq!(error.culprit(), Some(rank));
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("rank {rank} on cuda:{rank}: ")),
            "{text}"
        );
    }
}

/// What `tcp` is tested for, where there are devices.
fn sums_are_the_same_on_every_rank(world: usize) {
    let elements = 100_003;
    let shard = move |index: usize| -> Vec<f32> {
        (0..elements)
            .map(|i| ((i * 37 + index * 101) as f32).sin())
            .collect()
    };
    let expected = tree_sum((0..SHARDS).map(shard).collect());
    let results = run_ranks(world, move |rank, joined| {
        let mut collective = joined.expect("all ranks come");
        let shards = owned(SHARDS, rank, world).map(shard).collect();
        let sum = collective.all_reduce(shards).expect("all ranks stay");
        collective.barrier().expect("all ranks stay");
        let own = vec![rank as f32; 5];
        let told = collective.broadcast(world - 1, own);
        (sum, told.expect("all ranks stay"))
    });
    for (sum, told) in &results {
        assert_eq!(sum, &results[0].0, "the same bits everywhere");
        assert_eq!(told, &[(world - 1) as f32; 5]);
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
        assert!(sum.iter().zip(&expected).all(close));
    }
}
