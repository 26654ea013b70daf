//! Accepts connections of other ranks for the life of a process.
//!
//! A rank may call before this one knows of the epoch: its connection waits
//! here. One that calls for an epoch that is over is told so and turned away.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use retouch_credentials::Handshake;

use super::{
    error::CollectiveError,
    hello::{Hello, Introduced, Reply},
};

/// A caller must introduce itself within this time.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// Callers of epochs to come; more are turned away.
const WAITING_MAX: usize = 4096;
/// Callers that are introducing themselves at a time; strangers must not keep ranks out for long.
const INTRODUCTIONS_MAX: usize = 64;

/// The address at which this process is reached by other ranks.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    lobby: Arc<Lobby>,
    thread: Option<JoinHandle<()>>,
}

/// Callers that wait for this rank to reach their epoch.
#[derive(Debug)]
pub(super) struct Lobby {
    handshake: Handshake,
    introductions: AtomicUsize,
    state: Mutex<LobbyState>,
    changed: Condvar,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct LobbyState {
    epoch: u64,
    /// Who made this rank give the epoch up.
    culprit: Option<u32>,
    waiting: Vec<(Hello, Introduced)>,
}

impl Listener {
    /// Opens `address` (port 0: any free port) for ranks that `handshake` believes.
    ///
    /// # Errors
    ///
    /// If the address is in use or not of this machine.
    pub fn bind(address: SocketAddr, handshake: Handshake) -> Result<Self, CollectiveError> {
        let listen = |source| CollectiveError::Listen { address, source };
        let socket = TcpListener::bind(address).map_err(listen)?;
        let address = socket.local_addr().map_err(listen)?;
        let lobby = Arc::new(Lobby {
            handshake,
            introductions: AtomicUsize::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
            closed: AtomicBool::new(false),
        });
        let accepting = lobby.clone();
        let thread = std::thread::Builder::new()
            .name("ranks-accept".into())
            .spawn(move || accepting.accept_all(&socket))
            .map_err(listen)?;
        Ok(Self {
            address,
            lobby,
            thread: Some(thread),
        })
    }

    /// The address with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn lobby(&self) -> &Arc<Lobby> {
        &self.lobby
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.lobby.closed.store(true, Ordering::Release);
        self.lobby.changed.notify_all();
        // The accepting thread sits in accept(): a connection wakes it.
        let _ = TcpStream::connect_timeout(&self.address, HELLO_DEADLINE);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Lobby {
    pub(super) fn handshake(&self) -> &Handshake {
        &self.handshake
    }

    /// Makes `epoch` the current one and turns away callers of older ones.
    ///
    /// Gives the newer epoch if this one is over already.
    pub(super) fn enter(&self, epoch: u64) -> Result<(), u64> {
        let mut state = self.state();
        if state.epoch > epoch {
            return Err(state.epoch);
        }
        // Ranks that heard of the epoch earlier have called already and wait here.
        *state = LobbyState {
            epoch,
            culprit: None,
            waiting: std::mem::take(&mut state.waiting),
        };
        state.turn_away();
        Ok(())
    }

    /// Gives the current epoch up: whoever calls for it is told because of whom.
    pub(super) fn leave(&self, epoch: u64, culprit: usize) {
        let mut state = self.state();
        if state.epoch == epoch {
            state.culprit = Some(culprit as u32);
            state.turn_away();
        }
    }

    /// Waits for the connection of `rank` in `epoch`; none after the deadline or
    /// once `give_up` is set.
    pub(super) fn take(
        &self,
        epoch: u64,
        rank: usize,
        deadline: Instant,
        give_up: &AtomicBool,
    ) -> Option<(Hello, Introduced)> {
        let mut state = self.state();
        loop {
            let found = state
                .waiting
                .iter()
                .position(|(h, _)| h.epoch == epoch && h.rank as usize == rank);
            if let Some(index) = found {
                return Some(state.waiting.swap_remove(index));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || give_up.load(Ordering::Acquire) || self.is_closed() {
                return None;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(|e| e.into_inner())
                .0;
        }
    }

    /// Wakes whoever waits in [`take`](Self::take), to look at its flag.
    pub(super) fn wake(&self) {
        self.changed.notify_all();
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn state(&self) -> MutexGuard<'_, LobbyState> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn accept_all(self: &Arc<Self>, socket: &TcpListener) {
        for stream in socket.incoming() {
            if self.is_closed() {
                return;
            }
            match stream {
                Ok(stream) => self.receive(stream),
                Err(error) => tracing::debug!(%error, "a caller was gone at once"),
            }
        }
    }

    /// Lets the caller introduce itself on a thread of its own: a silent one holds up nobody.
    fn receive(self: &Arc<Self>, stream: TcpStream) {
        // Counted before the thread is there, so that a burst of callers can't start more.
        if self.introductions.fetch_add(1, Ordering::AcqRel) >= INTRODUCTIONS_MAX {
            self.introductions.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let lobby = self.clone();
        std::thread::spawn(move || {
            match introduce(&lobby.handshake, stream) {
                Ok((hello, caller)) => lobby.admit(hello, caller),
                Err(error) => {
                    tracing::warn!(%error, "turned away a caller that is no rank of this run");
                }
            }
            lobby.introductions.fetch_sub(1, Ordering::AcqRel);
        });
    }

    fn admit(&self, hello: Hello, mut caller: Introduced) {
        let mut state = self.state();
        if let Some(reply) = state.refusal(&hello) {
            let _ = caller.reply(reply);
            return;
        }
        // A rank that calls again has given its first connection up.
        state
            .waiting
            .retain(|(h, _)| (h.epoch, h.rank) != (hello.epoch, hello.rank));
        if state.waiting.len() < WAITING_MAX {
            state.waiting.push((hello, caller));
            self.changed.notify_all();
        }
    }
}

impl LobbyState {
    fn refusal(&self, hello: &Hello) -> Option<Reply> {
        match self.culprit {
            _ if hello.epoch < self.epoch => Some(Reply::Outdated { newer: self.epoch }),
            Some(culprit) if hello.epoch == self.epoch => Some(Reply::GaveUp { culprit }),
            _ => None,
        }
    }

    fn turn_away(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        for (hello, mut caller) in waiting {
            match self.refusal(&hello) {
                Some(reply) => drop(caller.reply(reply)),
                None => self.waiting.push((hello, caller)),
            }
        }
    }
}

fn introduce(handshake: &Handshake, stream: TcpStream) -> std::io::Result<(Hello, Introduced)> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HELLO_DEADLINE))?;
    stream.set_write_timeout(Some(HELLO_DEADLINE))?;
    let keys = handshake.answer(&stream)?;
    let mut caller = Introduced::new(stream, &keys);
    Ok((caller.hear()?, caller))
}
