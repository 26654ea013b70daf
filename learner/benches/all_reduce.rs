//! The sum of gradient shards over ranks on loopback, against copying the bytes alone.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use retouch_credentials::Handshake;
use retouch_learner::collective::{Aborter, Deadlines, Listener, Membership, TcpCollective};

/// An adapter of 16 M values, 64 MiB.
const ELEMENTS: usize = 1 << 24;
const SHARDS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(60);

/// Ranks 1.. as threads that sum as often as they are told to.
struct Peers {
    rounds: Vec<mpsc::Sender<u64>>,
    threads: Vec<JoinHandle<()>>,
}

fn collective(world: usize) -> (TcpCollective, Peers) {
    let listeners: Vec<Listener> = (0..world)
        .map(|_| Listener::bind(([127, 0, 0, 1], 0).into(), Handshake::open()).expect("a port"))
        .collect();
    let peers: Vec<SocketAddr> = listeners.iter().map(Listener::address).collect();
    let join = move |rank: usize, listener: &Listener| {
        let membership = Membership {
            epoch: 1,
            rank,
            peers: peers.clone(),
            shards: SHARDS,
        };
        let deadlines = Deadlines {
            join: PATIENCE,
            arrival: PATIENCE,
            stall: PATIENCE,
        };
        TcpCollective::join(listener, membership, deadlines, &Aborter::default())
            .expect("all ranks come")
    };
    let mut listeners = listeners.into_iter().enumerate();
    let (_, first) = listeners.next().expect("at least one rank");
    let mut peers = Peers {
        rounds: Vec::new(),
        threads: Vec::new(),
    };
    for (rank, listener) in listeners {
        let (sender, rounds) = mpsc::channel();
        let join = join.clone();
        peers.rounds.push(sender);
        peers.threads.push(std::thread::spawn(move || {
            let mut collective = join(rank, &listener);
            for count in rounds {
                for _ in 0..count {
                    collective.all_reduce(sums()).expect("all ranks stay");
                }
            }
        }));
    }
    (join(0, &first), peers)
}

/// One node's sum is enough: adding a rank's own shards is not what is measured.
fn sums() -> Vec<Vec<f32>> {
    vec![vec![0.5; ELEMENTS]]
}

fn all_reduce(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("all_reduce_64MiB");
    group
        .sample_size(10)
        .throughput(Throughput::Bytes(4 * ELEMENTS as u64));
    for world in [2, 4, 8] {
        let (mut collective, peers) = collective(world);
        group.bench_function(BenchmarkId::new("ranks", world), |bencher| {
            bencher.iter_custom(|rounds| {
                peers
                    .rounds
                    .iter()
                    .for_each(|peer| peer.send(rounds).expect("the peer lives"));
                let mut busy = Duration::ZERO;
                for _ in 0..rounds {
                    let sums = sums();
                    let begin = Instant::now();
                    collective.all_reduce(sums).expect("all ranks stay");
                    busy += begin.elapsed();
                }
                busy
            });
        });
        drop(peers.rounds);
        peers
            .threads
            .into_iter()
            .for_each(|thread| thread.join().expect("no panic"));
    }
    group.finish();
}

/// What loopback gives at best: both directions at once, nothing added.
fn loopback(criterion: &mut Criterion) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let bytes = 4 * ELEMENTS / 2;
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("the bench connects");
        while swap(&stream, bytes) {}
    });
    let stream = TcpStream::connect(address).expect("it listens");
    let mut group = criterion.benchmark_group("loopback_32MiB_each_way");
    group
        .sample_size(10)
        .throughput(Throughput::Bytes(2 * bytes as u64));
    group.bench_function("swap", |bencher| bencher.iter(|| swap(&stream, bytes)));
    group.finish();
}

fn swap(stream: &TcpStream, bytes: usize) -> bool {
    let chunk = vec![1; 256 * 1024];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..bytes / chunk.len() {
                if { stream }.write_all(&chunk).is_err() {
                    return;
                }
            }
        });
        let mut scratch = vec![0; 256 * 1024];
        (0..bytes / scratch.len()).all(|_| { stream }.read_exact(&mut scratch).is_ok())
    })
}

criterion_group!(benches, all_reduce, loopback);
criterion_main!(benches);
