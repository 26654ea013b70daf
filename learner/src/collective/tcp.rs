//! One epoch's collective over plain sockets.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use retouch_credentials::Handshake;

use super::{
    error::CollectiveError,
    halving,
    hello::{Hello, Introduced, Reply},
    link::Link,
    listener::{Listener, Lobby},
    plan::{is_balanced, partners},
    scatter,
    seal::Sealing,
};
use crate::shards::{owned, tree_sum};

/// Pause between two attempts to reach a rank that does not listen yet.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How often a waiting rank says so within the time after which it would be blamed.
const WAITING_SAID_PER_DEADLINE: u32 = 5;
/// A connection attempt is cut into such pieces, to notice an abort.
const CONNECT_TICK: Duration = Duration::from_millis(250);
/// A rank that was reached must say who it is within this time.
const INTRODUCTION_MAX: Duration = Duration::from_secs(2);

/// The ranks of an epoch.
#[derive(Clone, Debug)]
pub struct Membership {
    /// The epoch; older ones are refused.
    pub epoch: u64,
    /// This process's rank.
    pub rank: usize,
    /// The addresses of all ranks' [`Listener`]s, in rank order.
    pub peers: Vec<SocketAddr>,
    /// Shards of the gradient, over all ranks.
    pub shards: usize,
    /// What of their messages is sealed; the same on all ranks.
    pub sealing: Sealing,
}

/// How long to wait for other ranks (A7).
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For all ranks of an epoch to meet.
    pub join: Duration,
    /// For the first byte of a message, while its sender may still be computing.
    pub arrival: Duration,
    /// For each further byte.
    pub stall: Duration,
}

/// Ends a collective's waits from another thread.
#[derive(Clone, Debug, Default)]
pub struct Aborter {
    stopped: Arc<AtomicBool>,
    lobby: Arc<Mutex<Option<Arc<Lobby>>>>,
}

/// The connections of one epoch.
#[derive(Debug)]
pub struct TcpCollective {
    membership: Membership,
    links: BTreeMap<usize, Link>,
    deadlines: Deadlines,
    stopped: Arc<AtomicBool>,
    sequence: u32,
    broken: bool,
}

impl Aborter {
    /// Makes the collective fail with [`CollectiveError::Aborted`], now or as
    /// soon as it waits.
    pub fn abort(&self) {
        self.stopped.store(true, Ordering::Release);
        if let Some(lobby) = self
            .lobby
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .as_ref()
        {
            lobby.wake();
        }
    }

    /// Set by the first abort.
    #[cfg(feature = "nccl")]
    pub(super) fn stopped(&self) -> Arc<AtomicBool> {
        self.stopped.clone()
    }

    fn watch(&self, lobby: &Arc<Lobby>) {
        *self.lobby.lock().unwrap_or_else(|e| e.into_inner()) = Some(lobby.clone());
    }
}

impl TcpCollective {
    /// Meets the other ranks of an epoch.
    ///
    /// # Errors
    ///
    /// If a rank does not come in time or refuses, or on [`Aborter::abort`].
    pub fn join(
        listener: &Listener,
        membership: Membership,
        deadlines: Deadlines,
        aborter: &Aborter,
    ) -> Result<Self, CollectiveError> {
        aborter.watch(listener.lobby());
        let stopped = aborter.stopped.clone();
        let mut this = Self {
            membership,
            links: BTreeMap::new(),
            deadlines,
            stopped,
            sequence: 0,
            broken: false,
        };
        match this.meet(listener) {
            Ok(()) => Ok(this),
            Err(error) => {
                listener
                    .lobby()
                    .leave(this.membership.epoch, this.blame(&error));
                Err(this.fail(error))
            }
        }
    }

    /// This rank, counted from zero.
    pub fn rank(&self) -> usize {
        self.membership.rank
    }

    /// How many ranks take part.
    pub fn world(&self) -> usize {
        self.membership.peers.len()
    }

    /// How many shards all ranks hold together.
    pub fn shards(&self) -> usize {
        self.membership.shards
    }

    /// The sum over all shards of all ranks, the same bits on every rank.
    ///
    /// `shards` holds the sums of the shards of this rank in order, all of one
    /// length, which must be the same on all ranks.
    ///
    /// # Errors
    ///
    /// If a rank is lost, stalls or does something else. The collective is of no
    /// more use then.
    pub fn all_reduce(&mut self, shards: Vec<Vec<f32>>) -> Result<Vec<f32>, CollectiveError> {
        // Links may be cut in the middle of a frame by now: only a new epoch's begin at one.
        if self.broken {
            return Err(CollectiveError::Aborted);
        }
        let result = self.reduce(shards);
        result.map_err(|error| self.fail(error))
    }

    /// Gives every rank the values of rank `root`, bit for bit; all pass as many.
    ///
    /// # Errors
    ///
    /// As [`all_reduce`](Self::all_reduce).
    pub fn broadcast(
        &mut self,
        root: usize,
        mut values: Vec<f32>,
    ) -> Result<Vec<f32>, CollectiveError> {
        if self.rank() != root {
            // The one number that changes no other when it is added.
            values.fill(-0.0);
        }
        // A sum rather than a protocol of its own: deadlines, tags and blame are there once.
        let mut shards = vec![vec![-0.0; values.len()]; self.own_shards() - 1];
        shards.push(values);
        self.all_reduce(shards)
    }

    /// Waits until every rank has come here.
    ///
    /// # Errors
    ///
    /// If a rank is lost or stalls.
    pub fn barrier(&mut self) -> Result<(), CollectiveError> {
        // With an element for each rank, every message of the sum carries something.
        let shards = vec![vec![0.0; self.world()]; self.own_shards()];
        self.all_reduce(shards).map(drop)
    }

    fn own_shards(&self) -> usize {
        owned(self.shards(), self.rank(), self.world()).len()
    }

    fn reduce(&mut self, shards: Vec<Vec<f32>>) -> Result<Vec<f32>, CollectiveError> {
        if is_balanced(self.shards(), self.world()) {
            let mut sum = tree_sum(shards);
            halving::all_reduce(self, &mut sum)?;
            return Ok(sum);
        }
        let elements = shards.first().map_or(0, Vec::len);
        scatter::all_reduce(self, shards, elements)
    }

    /// Sends to one rank while receiving from one (maybe the same).
    pub(super) fn exchange(
        &mut self,
        to: usize,
        message: &[f32],
        from: usize,
        receive: impl FnOnce(&Link, u32) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        // Every rank counts its exchanges, so that one that is a step ahead is noticed rather than added up.
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        let (to, from, stopped) = (&self.links[&to], &self.links[&from], &self.stopped);
        // The other direction has nothing to wait for then, and would only blame its own rank when its deadline passes.
        let stop_on_error = |result: Result<(), CollectiveError>| {
            result.inspect_err(|_| stopped.store(true, Ordering::Release))
        };
        let (done, is_done) = mpsc::channel();
        let (sent, received) = std::thread::scope(|scope| {
            // Both sides send at once. Messages are larger than what sockets buffer, so if neither read before its own
            // was sent, both would wait for ever.
            let sender = scope.spawn(|| stop_on_error(to.send(sequence, message)));
            scope.spawn(|| self.say_waiting(is_done));
            let received = stop_on_error(receive(from, sequence));
            let sent = sender.join().unwrap_or(Err(CollectiveError::Aborted));
            drop(done);
            (sent, received)
        });
        root_cause(received, sent)
    }

    /// Tells everyone now and then that this rank is here, until the channel closes.
    fn say_waiting(&self, is_done: mpsc::Receiver<()>) {
        let every = self.deadlines.arrival.min(self.deadlines.stall) / WAITING_SAID_PER_DEADLINE;
        while is_done.recv_timeout(every) == Err(mpsc::RecvTimeoutError::Timeout) {
            self.links.values().for_each(Link::say_waiting);
        }
    }

    fn meet(&mut self, listener: &Listener) -> Result<(), CollectiveError> {
        let Membership {
            epoch,
            rank,
            shards,
            ..
        } = self.membership;
        if self.world() > shards {
            return Err(CollectiveError::TooManyRanks {
                world: self.world(),
                shards,
            });
        }
        let deadline = Instant::now() + self.deadlines.join;
        // Before any call goes out: ranks that are still in an older epoch learn from the lobby that it is over.
        let enter = listener.lobby().enter(epoch);
        enter.map_err(|newer| CollectiveError::Outdated { rank, epoch, newer })?;
        let (lower, higher): (Vec<_>, Vec<_>) = partners(shards, rank, self.world())
            .into_iter()
            .partition(|&other| other < rank);
        // One connection for two ranks, and the higher one calls. Replies are read last, so that no rank waits for one
        // while others wait for its calls.
        for &other in &lower {
            let introduced = self.call(listener, other, deadline)?;
            self.add_link(other, introduced)?;
        }
        for other in higher {
            let introduced = self.receive_call(listener, other, deadline)?;
            self.add_link(other, introduced)?;
        }
        for other in lower {
            self.read_welcome(other, deadline)?;
        }
        Ok(())
    }

    fn add_link(&mut self, rank: usize, introduced: Introduced) -> Result<(), CollectiveError> {
        let (deadlines, stopped) = (self.deadlines, self.stopped.clone());
        let link = Link::new(
            rank,
            introduced,
            deadlines,
            stopped,
            self.membership.sealing,
        )?;
        self.links.insert(rank, link);
        Ok(())
    }

    fn call(
        &self,
        listener: &Listener,
        rank: usize,
        deadline: Instant,
    ) -> Result<Introduced, CollectiveError> {
        let hello = Hello {
            epoch: self.membership.epoch,
            rank: self.membership.rank as u32,
            world: self.world() as u32,
        };
        let mut last = None;
        while Instant::now() < deadline {
            if self.stopped.load(Ordering::Acquire) {
                return Err(CollectiveError::Aborted);
            }
            let handshake = listener.lobby().handshake();
            match greet(handshake, &self.membership.peers[rank], &hello) {
                Ok(introduced) => return Ok(introduced),
                // Refused connections too: it may not listen yet, or be starting again.
                Err(error) => last = Some(error),
            }
            std::thread::sleep(RETRY_PAUSE);
        }
        Err(self.absent(rank, last))
    }

    fn receive_call(
        &self,
        listener: &Listener,
        rank: usize,
        deadline: Instant,
    ) -> Result<Introduced, CollectiveError> {
        let epoch = self.membership.epoch;
        let Some((hello, mut caller)) = listener.lobby().take(epoch, rank, deadline, &self.stopped)
        else {
            let aborted = self.stopped.load(Ordering::Acquire);
            return Err(if aborted {
                CollectiveError::Aborted
            } else {
                self.absent(rank, None)
            });
        };
        if hello.world as usize != self.world() {
            let (found, expected) = (
                format!("a world of {}", hello.world),
                format!("{}", self.world()),
            );
            return Err(CollectiveError::Disagrees {
                rank,
                found,
                expected,
            });
        }
        let lost = |source| CollectiveError::Lost { rank, source };
        caller.reply(Reply::Welcome).map_err(lost)?;
        Ok(caller)
    }

    fn read_welcome(&self, rank: usize, deadline: Instant) -> Result<(), CollectiveError> {
        let epoch = self.membership.epoch;
        loop {
            return match self.links[&rank].read_reply() {
                Ok(Some(Reply::Welcome)) => Ok(()),
                Ok(Some(Reply::Outdated { newer })) => {
                    Err(CollectiveError::Outdated { rank, epoch, newer })
                }
                Ok(Some(Reply::GaveUp { culprit })) => Err(CollectiveError::GaveUp {
                    from: rank,
                    culprit: culprit as usize,
                }),
                Ok(None) if self.stopped.load(Ordering::Acquire) => Err(CollectiveError::Aborted),
                Ok(None) if Instant::now() < deadline => continue,
                Ok(None) => Err(self.absent(rank, None)),
                Err(source) => Err(CollectiveError::Lost { rank, source }),
            };
        }
    }

    fn absent(&self, rank: usize, last: Option<io::Error>) -> CollectiveError {
        let waited_ms = self.deadlines.join.as_millis() as u64;
        CollectiveError::Absent {
            rank,
            epoch: self.membership.epoch,
            waited_ms,
            last,
        }
    }

    fn blame(&self, error: &CollectiveError) -> usize {
        error.culprit().unwrap_or(self.membership.rank)
    }

    /// Tells the other ranks who is to blame and closes everything.
    pub(super) fn fail(&mut self, error: CollectiveError) -> CollectiveError {
        self.broken = true;
        let culprit = self.blame(&error);
        for link in self.links.values() {
            link.give_up(culprit);
        }
        let deadline = Link::farewell_deadline();
        // What the culprit still sends helps nobody, and it may never end.
        for link in self.links.values().filter(|link| link.rank != culprit) {
            link.drain(deadline);
        }
        self.links.clear();
        error
    }
}

/// The error that came first: the other side of an exchange is only stopped by it.
fn root_cause(
    received: Result<(), CollectiveError>,
    sent: Result<(), CollectiveError>,
) -> Result<(), CollectiveError> {
    match (received, sent) {
        (Err(CollectiveError::Aborted), Err(error)) => Err(error),
        (Err(error), _) | (Ok(()), Err(error)) => Err(error),
        (Ok(()), Ok(())) => Ok(()),
    }
}

fn greet(handshake: &Handshake, address: &SocketAddr, hello: &Hello) -> io::Result<Introduced> {
    let stream = TcpStream::connect_timeout(address, CONNECT_TICK)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(INTRODUCTION_MAX))?;
    stream.set_read_timeout(Some(INTRODUCTION_MAX))?;
    let keys = handshake.call(&stream)?;
    let mut introduced = Introduced::new(stream, &keys);
    introduced.say(hello)?;
    Ok(introduced)
}
