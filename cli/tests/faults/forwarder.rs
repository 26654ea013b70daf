//! Forwards TCP connections with a delay: a slow line, where the kernel has no netem.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Chunks on the line at a time.
const ON_THE_LINE_MAX: usize = 256;
const CHUNK_BYTES: usize = 16 << 10;

/// The delay, which can change, and what went through.
#[derive(Debug, Clone, Default)]
pub(crate) struct Line {
    delay_ms: Arc<AtomicU64>,
    connections: Arc<AtomicUsize>,
}

impl Line {
    /// Bytes that come from now on arrive this much later, in both directions.
    pub(crate) fn set_delay(&self, delay: Duration) {
        let ms = delay.as_millis() as u64;
        self.delay_ms.store(ms, Ordering::Relaxed);
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Listens on the present thread's network and forwards to `to` for as long as the process lives.
    pub(crate) fn open(&self, listen: SocketAddr, to: SocketAddr) {
        let listener = TcpListener::bind(listen).expect("a free port on the hub");
        let line = self.clone();
        thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                let line = line.clone();
                thread::spawn(move || line.forward(caller, to));
            }
        });
    }

    fn forward(&self, caller: TcpStream, to: SocketAddr) {
        let Ok(called) = TcpStream::connect_timeout(&to, Duration::from_secs(5)) else {
            return;
        };
        self.connections.fetch_add(1, Ordering::Relaxed);
        let (Ok(caller_too), Ok(called_too)) = (caller.try_clone(), called.try_clone()) else {
            return;
        };
        let line = self.clone();
        thread::spawn(move || line.carry(called_too, caller_too));
        self.carry(caller, called);
    }

    fn carry(&self, mut from: TcpStream, to: TcpStream) {
        let (sender, line) = sync_channel::<(Instant, Vec<u8>)>(ON_THE_LINE_MAX);
        let end = to.try_clone();
        let deliver = thread::spawn(move || deliver(line, to));
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(count @ 1..) = from.read(&mut chunk) {
            let delay = Duration::from_millis(self.delay_ms.load(Ordering::Relaxed));
            let due = Instant::now() + delay;
            if sender.send((due, chunk[..count].to_vec())).is_err() {
                break;
            }
        }
        drop(sender);
        let _ = deliver.join();
        for stream in [Ok(from), end].into_iter().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn deliver(line: Receiver<(Instant, Vec<u8>)>, mut to: TcpStream) {
    for (due, bytes) in line {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
}

#[test]
fn what_goes_through_arrives_later_and_whole() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let to = listener.local_addr().expect("a port");
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = free.local_addr().expect("a port");
    drop(free);
    let line = Line::default();
    line.set_delay(Duration::from_millis(60));
    line.open(listen, to);
    let mut near = TcpStream::connect(listen).expect("it listens");
    let begin = Instant::now();
    near.write_all(b"hello").expect("it reads");
    let (mut far, _) = listener.accept().expect("it is forwarded");
    let mut bytes = [0; 5];
    far.read_exact(&mut bytes).expect("it arrives");
    assert_eq!(&bytes, b"hello");
    assert!(begin.elapsed() >= Duration::from_millis(60));
    drop(near);
    assert_eq!(far.read(&mut bytes).expect("the end arrives too"), 0);
    assert_eq!(line.connections(), 1);
}
