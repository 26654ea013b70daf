//! Ranks as threads over loopback, and once as a process that is killed.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{OnceLock, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use retouch_credentials::{Access, Authority, Handshake, Principal};
use retouch_proto::worker::Role;

use super::{
    hello::{Hello, Introduced},
    *,
};
use crate::shards::{owned, tree_sum};

const PATIENT: Deadlines = Deadlines {
    join: Duration::from_secs(20),
    arrival: Duration::from_secs(20),
    stall: Duration::from_secs(20),
};
const HASTY: Deadlines = Deadlines {
    join: Duration::from_secs(20),
    arrival: Duration::from_millis(300),
    stall: Duration::from_millis(300),
};

fn listener() -> Listener {
    listener_for(handshake(Role::Learner))
}

fn listener_for(handshake: Handshake) -> Listener {
    Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), handshake).expect("a free port")
}

/// Credentials of one run, made once for all tests and the processes that they start.
fn authority_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = match std::env::var_os(CHILD_AUTHORITY) {
            Some(folder) => folder.into(),
            None => tempfile::tempdir().expect("a folder").keep(),
        };
        Authority::open_or_create(&folder).expect("an authority");
        folder
    })
}

fn authority() -> Authority {
    Authority::open_or_create(authority_folder()).expect("an authority")
}

fn handshake(role: Role) -> Handshake {
    handshake_of(&authority(), role)
}

fn handshake_of(authority: &Authority, role: Role) -> Handshake {
    let credentials = authority.issue(Principal::Worker(role)).expect("a key");
    let handshake = Access::from(credentials).handshake(Principal::Worker(Role::Learner));
    handshake.expect("good credentials")
}

fn shard(index: usize, elements: usize) -> Vec<f32> {
    // Values of mixed sizes, so that another order of addition shows.
    (0..elements)
        .map(|i| ((i * 37 + index * 101) as f32).sin() * 10_f32.powi((i + index) as i32 % 7 - 3))
        .collect()
}

fn shards_of(rank: usize, world: usize, shards: usize, elements: usize) -> Vec<Vec<f32>> {
    owned(shards, rank, world)
        .map(|i| shard(i, elements))
        .collect()
}

/// Runs one rank per thread and gives what each returned.
fn run_ranks<T: Send + 'static>(
    world: usize,
    shards: usize,
    deadlines: Deadlines,
    body: impl Fn(usize, Result<TcpCollective, CollectiveError>) -> T + Clone + Send + 'static,
) -> Vec<T> {
    let listeners: Vec<Listener> = (0..world).map(|_| listener()).collect();
    let peers: Vec<SocketAddr> = listeners.iter().map(Listener::address).collect();
    let spawn = |(rank, listener)| -> JoinHandle<T> {
        let (peers, body) = (peers.clone(), body.clone());
        std::thread::spawn(move || {
            let membership = Membership {
                epoch: 3,
                rank,
                peers,
                shards,
                sealing: Sealing::Everything,
            };
            body(
                rank,
                TcpCollective::join(&listener, membership, deadlines, &Aborter::default()),
            )
        })
    };
    let threads: Vec<JoinHandle<T>> = listeners.into_iter().enumerate().map(spawn).collect();
    threads
        .into_iter()
        .map(|thread| thread.join().expect("a rank panicked"))
        .collect()
}

#[test]
fn every_rank_count_gives_the_same_bits() {
    let elements = 200_003;
    let expected = tree_sum((0..8).map(|i| shard(i, elements)).collect());
    for world in [1, 2, 3, 4, 5, 8] {
        let sums = run_ranks(world, 8, PATIENT, move |rank, collective| {
            let mut collective = collective.expect("all ranks come");
            let once = collective
                .all_reduce(shards_of(rank, world, 8, elements))
                .expect("all ranks stay");
            let twice = collective
                .all_reduce(shards_of(rank, world, 8, elements))
                .expect("all ranks stay");
            assert_eq!(once, twice);
            once
        });
        for (rank, sum) in sums.iter().enumerate() {
            let same = sum
                .iter()
                .zip(&expected)
                .all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && sum.len() == elements, "rank {rank} of {world}");
        }
    }
}

#[test]
fn odd_shard_counts_and_short_vectors_are_summed_too() {
    for (world, shards, elements) in [(2, 6, 11), (4, 7, 3), (3, 3, 1), (4, 4, 0)] {
        let expected = tree_sum((0..shards).map(|i| shard(i, elements)).collect());
        let sums = run_ranks(world, shards, PATIENT, move |rank, collective| {
            let mut collective = collective.expect("all ranks come");
            collective
                .all_reduce(shards_of(rank, world, shards, elements))
                .expect("all ranks stay")
        });
        assert!(
            sums.iter().all(|sum| *sum == expected),
            "{world} ranks, {shards} shards, {elements} elements"
        );
    }
}

#[test]
fn a_ranks_values_reach_every_rank_bit_for_bit() {
    for (world, shards) in [(2, 8), (4, 4), (3, 7), (1, 2)] {
        let values = vec![0.0, -0.0, 1e-40, f32::MAX, f32::INFINITY, -3.7];
        let expected: Vec<u32> = values.iter().map(|v: &f32| v.to_bits()).collect();
        let told = run_ranks(world, shards, PATIENT, move |rank, collective| {
            let mut collective = collective.expect("all ranks come");
            collective.barrier().expect("all ranks stay");
            let own = if rank == world - 1 {
                values.clone()
            } else {
                vec![rank as f32; 6]
            };
            collective
                .broadcast(world - 1, own)
                .expect("all ranks stay")
        });
        for (rank, told) in told.iter().enumerate() {
            let told: Vec<u32> = told.iter().map(|v| v.to_bits()).collect();
            assert_eq!(told, expected, "rank {rank} of {world}");
        }
    }
}

#[test]
fn nobody_passes_a_barrier_before_the_last_has_come() {
    for (world, shards) in [(2, 8), (4, 8), (3, 8)] {
        let come = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let seen = run_ranks(world, shards, PATIENT, move |_, collective| {
            let mut collective = collective.expect("all ranks come");
            come.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            collective.barrier().expect("all ranks stay");
            come.load(std::sync::atomic::Ordering::SeqCst)
        });
        assert_eq!(seen, vec![world; world]);
    }
}

#[test]
fn stalled_rank_is_named_by_everyone() {
    for world in [4, 3] {
        let begin = Instant::now();
        let (release, held) = mpsc::channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(Some(held)));
        let counter = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(1));
        let errors = run_ranks(world, 12, HASTY, {
            let release = std::sync::Mutex::new(Some(release));
            let release = std::sync::Arc::new(release);
            move |rank, collective| {
                let mut collective = collective.expect("all ranks come");
                if rank == world - 1 {
                    // Connected but silent until everyone else has given up.
                    let held = held.lock().unwrap().take().unwrap();
                    let _ = held.recv_timeout(Duration::from_secs(20));
                    return None;
                }
                let error = collective
                    .all_reduce(shards_of(rank, world, 12, 1000))
                    .expect_err("a rank is silent");
                if counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == world - 1 {
                    release.lock().unwrap().take();
                }
                Some(error)
            }
        });
        for error in errors.into_iter().flatten() {
            assert_eq!(error.culprit(), Some(world - 1), "{error}");
        }
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "took {:?}",
            begin.elapsed()
        );
    }
}

#[test]
fn absent_rank_is_named_by_everyone() {
    let dead = {
        let gone = listener();
        gone.address()
    };
    let listeners: Vec<Listener> = (0..3).map(|_| listener()).collect();
    let mut peers: Vec<SocketAddr> = listeners.iter().map(Listener::address).collect();
    peers.push(dead);
    let deadlines = Deadlines {
        join: Duration::from_millis(400),
        ..PATIENT
    };
    let threads: Vec<_> = listeners
        .into_iter()
        .enumerate()
        .map(|(rank, listener)| {
            let membership = Membership {
                epoch: 1,
                rank,
                peers: peers.clone(),
                shards: 4,
                sealing: Sealing::Everything,
            };
            std::thread::spawn(move || {
                let joined =
                    TcpCollective::join(&listener, membership, deadlines, &Aborter::default());
                joined
                    .and_then(|mut c| c.all_reduce(vec![vec![1.0; 10]]))
                    .expect_err("rank 3 is absent")
            })
        })
        .collect();
    for thread in threads {
        let error = thread.join().expect("a rank panicked");
        assert_eq!(error.culprit(), Some(3), "{error}");
    }
}

#[test]
fn ended_epoch_is_refused_with_the_newer_one() {
    let (mine, other) = (listener(), listener());
    mine.lobby().enter(9).expect("the first epoch");
    let peers = vec![mine.address(), other.address()];
    let membership = Membership {
        epoch: 8,
        rank: 1,
        peers: peers.clone(),
        shards: 2,
        sealing: Sealing::Everything,
    };
    let error = TcpCollective::join(&other, membership, PATIENT, &Aborter::default())
        .expect_err("epoch 8 is over");
    assert!(
        matches!(
            error,
            CollectiveError::Outdated {
                rank: 0,
                epoch: 8,
                newer: 9
            }
        ),
        "{error}"
    );
    let membership = Membership {
        epoch: 8,
        rank: 0,
        peers,
        shards: 2,
        sealing: Sealing::Everything,
    };
    let error = TcpCollective::join(&mine, membership, PATIENT, &Aborter::default())
        .expect_err("epoch 8 is over");
    assert!(
        matches!(error, CollectiveError::Outdated { newer: 9, .. }),
        "{error}"
    );
}

#[test]
fn abort_ends_the_wait_for_others() {
    let (mine, other) = (listener(), listener());
    let peers = vec![mine.address(), other.address()];
    let membership = Membership {
        epoch: 1,
        rank: 0,
        peers,
        shards: 2,
        sealing: Sealing::Everything,
    };
    let aborter = Aborter::default();
    let waiting = {
        let aborter = aborter.clone();
        std::thread::spawn(move || TcpCollective::join(&mine, membership, PATIENT, &aborter))
    };
    aborter.abort();
    let error = waiting.join().expect("no panic").expect_err("aborted");
    assert!(matches!(error, CollectiveError::Aborted), "{error}");
}

#[test]
fn strangers_are_turned_away_and_ranks_still_meet() {
    let mine = listener();
    let silent = TcpStream::connect(mine.address()).expect("it listens");
    let mut loud = TcpStream::connect(mine.address()).expect("it listens");
    loud.write_all(&[7; 4096]).expect("it reads");
    let of_another_run = tempfile::tempdir().expect("a folder");
    let of_another_run = Authority::open_or_create(of_another_run.path()).expect("an authority");
    for (handshake, said) in [
        (
            handshake_of(&of_another_run, Role::Learner),
            "invalid peer certificate",
        ),
        (handshake(Role::Rollout), "does not take"),
        (Handshake::open(), ""),
    ] {
        let stream = patient(TcpStream::connect(mine.address()).expect("it listens"));
        let hello = Hello {
            epoch: 1,
            rank: 1,
            world: 2,
        };
        let error = handshake.call(&stream).and_then(|keys| {
            let mut introduced = Introduced::new(stream, &keys);
            introduced.say(&hello)?;
            introduced.hear().map(drop)
        });
        let error = error.expect_err("a stranger").to_string();
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(mine.lobby().waiting(), 0, "nothing of theirs is kept");
    let sums = meet(mine, listener(), |address| address, Sealing::Everything);
    assert_eq!(sums.map(Result::unwrap), [vec![3.0; 10], vec![3.0; 10]]);
    drop((silent, loud));
}

fn patient(stream: TcpStream) -> TcpStream {
    for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
        set(&stream, Some(Duration::from_secs(20))).expect("a valid timeout");
    }
    stream
}

/// Two ranks of which the second calls the first under the address that `way` makes of it; what
/// each gets for its sum.
fn meet(
    first: Listener,
    second: Listener,
    way: impl FnOnce(SocketAddr) -> SocketAddr,
    sealing: Sealing,
) -> [Result<Vec<f32>, CollectiveError>; 2] {
    let peers = vec![way(first.address()), second.address()];
    let rank = |rank: usize, listener: Listener| {
        let peers = peers.clone();
        std::thread::spawn(move || {
            let membership = Membership {
                epoch: 1,
                rank,
                peers,
                shards: 2,
                sealing,
            };
            TcpCollective::join(&listener, membership, PATIENT, &Aborter::default())?
                .all_reduce(vec![vec![1.0 + rank as f32; 10]])
        })
    };
    [rank(0, first), rank(1, second)].map(|thread| thread.join().expect("no panic"))
}

/// Where the first frame's header and body are in what rank 1 sends: behind the hello and its tag,
/// and behind the frame's own tag.
const HEADER: usize = 24 + 16;
const BODY: usize = HEADER + 16 + 16;

/// The errors of two ranks between whom one byte of what rank 1 says is changed.
fn meet_with_a_changed_byte(place: usize, sealing: Sealing) -> [Option<String>; 2] {
    let way = |to: SocketAddr| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("a port");
        std::thread::spawn(move || {
            let caller = listener.accept().expect("rank 1 calls").0;
            let called = TcpStream::connect(to).expect("rank 0 listens");
            let back = (called.try_clone().unwrap(), caller.try_clone().unwrap());
            std::thread::spawn(move || forward(back.0, back.1, |_| {}));
            forward(caller, called, spoil(place));
        });
        address
    };
    let results = meet(listener(), listener(), way, sealing);
    results.map(|result| result.err().map(|error| error.to_string()))
}

#[test]
fn what_is_changed_on_its_way_is_noticed() {
    for (place, sealing) in [
        (BODY + 10, Sealing::Everything),
        (HEADER + 9, Sealing::Everything),
    ] {
        let [error, other] = meet_with_a_changed_byte(place, sealing);
        assert!(other.is_some());
        let error = error.expect("a byte was changed");
        let known = ["tag is wrong", "elements of message"];
        assert!(known.iter().any(|known| error.contains(known)), "{error}");
    }
    let trusting = meet_with_a_changed_byte(BODY + 10, Sealing::Headers);
    assert_eq!(trusting, [None, None], "gradients were not sealed");
}

/// Changes one bit of the byte at this place, counted from the hello.
fn spoil(place: usize) -> impl FnMut(&mut [u8]) {
    let mut since_hello: Option<usize> = None;
    move |bytes| {
        let hello = || bytes.windows(8).position(|eight| eight == b"RTCHCOL3");
        let Some(begin) = since_hello.map_or_else(hello, |_| Some(0)) else {
            return;
        };
        let before = since_hello.unwrap_or(0);
        since_hello = Some(before + bytes.len() - begin);
        let place = place.checked_sub(before).map(|place| begin + place);
        if let Some(byte) = place.and_then(|place| bytes.get_mut(place)) {
            *byte ^= 1;
        }
    }
}

/// Copies what comes until one side ends.
fn forward(mut from: TcpStream, mut to: TcpStream, mut change: impl FnMut(&mut [u8])) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        change(&mut bytes[..count]);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

const CHILD_PEER: &str = "RETOUCH_TEST_COLLECTIVE_PEER";
const CHILD_AUTHORITY: &str = "RETOUCH_TEST_COLLECTIVE_AUTHORITY";

fn one_of_two(
    rank: usize,
    mine: &Listener,
    peers: Vec<SocketAddr>,
) -> Result<TcpCollective, CollectiveError> {
    let membership = Membership {
        epoch: 1,
        rank,
        peers,
        shards: 2,
        sealing: Sealing::Everything,
    };
    TcpCollective::join(mine, membership, PATIENT, &Aborter::default())
}

/// Rank 1 of 2 in a process of its own; does nothing unless told its peer.
#[test]
fn child_rank() {
    let Ok(peer) = std::env::var(CHILD_PEER) else {
        return;
    };
    let mine = listener();
    println!("listening {}", mine.address());
    std::io::stdout().flush().expect("stdout is piped");
    let peers = vec![peer.parse().expect("an address"), mine.address()];
    let mut collective = one_of_two(1, &mine, peers).expect("rank 0 is there");
    for _ in 0..1_000_000 {
        if collective.all_reduce(vec![vec![1.0; 1 << 18]]).is_err() {
            return;
        }
    }
}

#[test]
fn killed_process_is_noticed_at_once() {
    let mine = listener();
    let folder = authority_folder();
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "collective::tests::child_rank", "--nocapture"])
        .env(CHILD_PEER, mine.address().to_string())
        .env(CHILD_AUTHORITY, folder)
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test starts again");
    let lines = BufReader::new(child.stdout.take().expect("a pipe"))
        .lines()
        .map_while(Result::ok);
    let address = lines
        .filter_map(|l| l.split("listening ").nth(1).map(str::to_owned))
        .next()
        .expect("an address");
    let peers = vec![mine.address(), address.trim().parse().expect("an address")];
    let mut collective = one_of_two(0, &mine, peers).expect("the child joins");
    for _ in 0..3 {
        let sum = collective
            .all_reduce(vec![vec![2.0; 1 << 18]])
            .expect("the child lives");
        assert!(sum.iter().all(|&x| x == 3.0));
    }
    child.kill().expect("the child is ours");
    child.wait().expect("the child ends");
    let begin = Instant::now();
    let error = (0..3)
        .find_map(|_| collective.all_reduce(vec![vec![2.0; 1 << 18]]).err())
        .expect("the child is dead");
    assert_eq!(error.culprit(), Some(1), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(5));
}
