//! Messages to and from one rank.
//!
//! A message goes in chunks, each behind a header that tells how much is left, and the tag of both,
//! so that a rank which gives up can say so between two chunks of a long one.
//! Sockets are read and written in short ticks, between which a deadline or an
//! abort is noticed. A rank that itself waits for another says so now and then:
//! otherwise a whole chain of ranks would reach its deadlines at once, and blame
//! one another instead of the one that is silent.

use std::{
    io::{self, IoSlice, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, TryLockError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    error::CollectiveError,
    hello::{Introduced, Reply},
    seal::{Seal, Sealing, TAG_BYTES},
    tcp::Deadlines,
};
use crate::shards::add_into;

/// Elements per chunk: large enough that ranks seldom wake each other, small enough for a cache.
const CHUNK: usize = 256 * 1024;
const HEADER_BYTES: usize = 16;
/// Header and tag: what comes before the elements, so that a frame is one write and two reads.
const HEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;
const DATA: u32 = 1;
const GIVE_UP: u32 = 2;
const WAITING: u32 = 3;
/// Longest wait in one call: nothing but time wakes a blocked read of std's sockets.
const TICK: Duration = Duration::from_millis(25);
/// A sender that only says that it waits is waited for this many deadlines.
const DEADLINES_MAX: u32 = 4;
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_millis(200);

/// A connection to one rank, used by one sender and one receiver at a time.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) rank: usize,
    stream: TcpStream,
    deadlines: Deadlines,
    stopped: Arc<AtomicBool>,
    writing: Mutex<Writing>,
    receive: Mutex<Seal>,
}

/// Held while a frame is written.
#[derive(Debug)]
struct Writing {
    /// Whether the last frame is whole.
    whole: bool,
    seal: Seal,
}

/// What a frame begins with.
struct Head {
    header: Header,
    tag: [u8; TAG_BYTES],
}

struct Header {
    kind: u32,
    /// Which message of the collective's life; in a farewell, who is to blame.
    sequence: u32,
    /// Elements of the message from here on.
    left: u64,
}

impl Link {
    pub(super) fn new(
        rank: usize,
        introduced: Introduced,
        deadlines: Deadlines,
        stopped: Arc<AtomicBool>,
        sealing: Sealing,
    ) -> Result<Self, CollectiveError> {
        let Introduced {
            stream,
            send,
            receive,
        } = introduced;
        let lost = |source| CollectiveError::Lost { rank, source };
        stream.set_write_timeout(Some(TICK)).map_err(lost)?;
        stream.set_read_timeout(Some(TICK)).map_err(lost)?;
        // A message's last chunk is small, and the other rank waits for it.
        stream.set_nodelay(true).map_err(lost)?;
        Ok(Self {
            rank,
            stream,
            deadlines,
            stopped,
            writing: Mutex::new(Writing {
                whole: true,
                seal: send.with(sealing),
            }),
            receive: Mutex::new(receive.with(sealing)),
        })
    }

    /// The answer to the introduction, if it comes within a tick.
    pub(super) fn read_reply(&self) -> io::Result<Option<Reply>> {
        let mut ahead = [0; Reply::BYTES];
        match self.stream.peek(&mut ahead) {
            Ok(count) if 0 < count && count < ahead.len() => Ok(None),
            Ok(_) => Reply::read(&self.stream, &mut self.received()).map(Some),
            Err(error) if is_tick(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends one message.
    pub(super) fn send(&self, sequence: u32, message: &[f32]) -> Result<(), CollectiveError> {
        let mut left = message.len() as u64;
        for chunk in message.chunks(CHUNK) {
            let header = Header {
                kind: DATA,
                sequence,
                left,
            };
            // Locked chunk by chunk: between two a word that this rank waits, or gives up, can be said.
            self.write_frame(&mut self.lock(), &header, bytemuck::cast_slice(chunk))?;
            left -= chunk.len() as u64;
        }
        Ok(())
    }

    /// Says that this rank lives but waits for another one. Nothing happens while a
    /// frame is under way, which says as much.
    pub(super) fn say_waiting(&self) {
        let mut writing = match self.writing.try_lock() {
            Ok(writing) => writing,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if writing.whole {
            let header = Header {
                kind: WAITING,
                sequence: 0,
                left: 0,
            };
            // What is wrong shows when something has to be said.
            let _ = self.write_frame(&mut writing, &header, &[]);
        }
    }

    /// Receives a message of exactly `into.len()` elements and adds it to `into`.
    pub(super) fn receive_add(
        &self,
        sequence: u32,
        into: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let mut scratch = vec![0.0; CHUNK.min(into.len())];
        self.receive_chunks(sequence, into, |this, head, part| {
            let scratch = &mut scratch[..part.len()];
            this.read_elements(head, scratch)?;
            add_into(part, scratch);
            Ok(())
        })
    }

    /// Receives a message of exactly `into.len()` elements in place.
    pub(super) fn receive_into(
        &self,
        sequence: u32,
        into: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.receive_chunks(sequence, into, Self::read_elements)
    }

    /// Tells the other side who is to blame, and sends no more.
    pub(super) fn give_up(&self, culprit: usize) {
        let mut writing = self.lock();
        // In the middle of a frame it would be read as gradients; the connection that ends says enough then.
        if writing.whole {
            let header = Header {
                kind: GIVE_UP,
                sequence: culprit as u32,
                left: 0,
            };
            let head = header.sealed(&mut writing.seal, &[]);
            let _ = (&self.stream).write_all(&head);
        }
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads what is still under way for a moment: closing a socket with unread
    /// bytes resets it, and the other side would lose the farewell.
    pub(super) fn drain(&self, deadline: Instant) {
        let mut scratch = vec![0; 64 * 1024];
        while Instant::now() < deadline {
            match (&self.stream).read(&mut scratch) {
                Ok(0) => return,
                Err(error) if !is_tick(&error) => return,
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// When a farewell that begins now must be over.
    pub(super) fn farewell_deadline() -> Instant {
        Instant::now() + FAREWELL
    }

    fn receive_chunks(
        &self,
        sequence: u32,
        mut into: &mut [f32],
        mut take: impl FnMut(&Self, &Head, &mut [f32]) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        // The other side may still be computing: only the first byte may be late.
        let mut deadline = self.deadlines.arrival;
        while !into.is_empty() {
            let head = self.read_head(deadline)?;
            self.check(&head.header, sequence, into.len())?;
            let (part, rest) = into.split_at_mut(CHUNK.min(into.len()));
            take(self, &head, part)?;
            into = rest;
            deadline = self.deadlines.stall;
        }
        Ok(())
    }

    fn read_head(&self, deadline: Duration) -> Result<Head, CollectiveError> {
        let begin = Instant::now();
        loop {
            let mut bytes = [0; HEAD_BYTES];
            self.read(&mut bytes, deadline)?;
            let head = Head::parse(&bytes);
            // The tag of data covers the elements, which are still to come.
            if head.header.kind != DATA {
                self.check_tag(&head, &[])?;
            }
            match head.header.kind {
                WAITING if begin.elapsed() < deadline * DEADLINES_MAX => {}
                WAITING => return Err(self.stalled(deadline * DEADLINES_MAX)),
                GIVE_UP => {
                    let culprit = head.header.sequence as usize;
                    return Err(CollectiveError::GaveUp {
                        from: self.rank,
                        culprit,
                    });
                }
                _ => return Ok(head),
            }
        }
    }

    fn check(&self, header: &Header, sequence: u32, left: usize) -> Result<(), CollectiveError> {
        let found = (header.kind, header.sequence, header.left);
        if found == (DATA, sequence, left as u64) {
            return Ok(());
        }
        Err(CollectiveError::Disagrees {
            rank: self.rank,
            found: format!("{} elements of message {}", header.left, header.sequence),
            expected: format!("{left} elements of message {sequence}"),
        })
    }

    fn read_elements(&self, head: &Head, into: &mut [f32]) -> Result<(), CollectiveError> {
        self.read(bytemuck::cast_slice_mut(into), self.deadlines.stall)?;
        self.check_tag(head, bytemuck::cast_slice(into))
    }

    /// Checks a frame by its tag.
    fn check_tag(&self, head: &Head, body: &[u8]) -> Result<(), CollectiveError> {
        let header = head.header.bytes();
        let checked = self.received().check(&header, body, head.tag);
        checked.map_err(|error| self.lost(error))
    }

    fn write_frame(
        &self,
        writing: &mut Writing,
        header: &Header,
        body: &[u8],
    ) -> Result<(), CollectiveError> {
        writing.whole = false;
        let head = header.sealed(&mut writing.seal, body);
        self.write(&mut [IoSlice::new(&head), IoSlice::new(body)])?;
        writing.whole = true;
        Ok(())
    }

    fn read(&self, mut bytes: &mut [u8], deadline: Duration) -> Result<(), CollectiveError> {
        let mut moved = Instant::now();
        while !bytes.is_empty() {
            match (&self.stream).read(bytes) {
                Ok(0) => return Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    bytes = &mut bytes[count..];
                    moved = Instant::now();
                }
                Err(error) => self.tolerate(error, moved, deadline)?,
            }
        }
        Ok(())
    }

    fn write(&self, mut parts: &mut [IoSlice<'_>]) -> Result<(), CollectiveError> {
        // The other side may still be computing while our buffers are full.
        let deadline = self.deadlines.arrival;
        let mut moved = Instant::now();
        while !parts.is_empty() {
            match (&self.stream).write_vectored(parts) {
                Ok(count) => {
                    IoSlice::advance_slices(&mut parts, count);
                    moved = Instant::now();
                }
                Err(error) => self.tolerate(error, moved, deadline)?,
            }
        }
        Ok(())
    }

    /// Nothing moved in a tick: that is no error yet, unless it was the last.
    fn tolerate(
        &self,
        error: io::Error,
        moved: Instant,
        deadline: Duration,
    ) -> Result<(), CollectiveError> {
        if !is_tick(&error) {
            return Err(self.lost(error));
        }
        if self.stopped.load(Ordering::Acquire) {
            return Err(CollectiveError::Aborted);
        }
        if moved.elapsed() < deadline {
            return Ok(());
        }
        Err(self.stalled(deadline))
    }

    fn stalled(&self, waited: Duration) -> CollectiveError {
        CollectiveError::Stalled {
            rank: self.rank,
            waited_ms: waited.as_millis() as u64,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn received(&self) -> MutexGuard<'_, Seal> {
        self.receive.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn lost(&self, source: io::Error) -> CollectiveError {
        CollectiveError::Lost {
            rank: self.rank,
            source,
        }
    }
}

/// Whether a socket's error only means that nothing moved for a tick.
fn is_tick(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

impl Head {
    fn parse(bytes: &[u8; HEAD_BYTES]) -> Self {
        let (mut header, mut tag) = ([0; HEADER_BYTES], [0; TAG_BYTES]);
        header.copy_from_slice(&bytes[..HEADER_BYTES]);
        tag.copy_from_slice(&bytes[HEADER_BYTES..]);
        Self {
            header: Header::parse(header),
            tag,
        }
    }
}

impl Header {
    /// The bytes that go before the body.
    fn sealed(&self, seal: &mut Seal, body: &[u8]) -> [u8; HEAD_BYTES] {
        let header = self.bytes();
        let tag = seal.tag(&header, body);
        let mut head = [0; HEAD_BYTES];
        head[..HEADER_BYTES].copy_from_slice(&header);
        head[HEADER_BYTES..].copy_from_slice(&tag);
        head
    }

    fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..].copy_from_slice(&self.left.to_le_bytes());
        bytes
    }

    fn parse(bytes: [u8; HEADER_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, left @ ..] = bytes;
        Self {
            kind: u32::from_le_bytes([a, b, c, d]),
            sequence: u32::from_le_bytes([e, f, g, h]),
            left: u64::from_le_bytes(left),
        }
    }
}
