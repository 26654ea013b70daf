//! The first bytes between two ranks once each knows who the other is: for which epoch it calls.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

use super::seal::{Seal, TAG_BYTES};

const MAGIC: [u8; 8] = *b"RTCHCOL3";
const HELLO_BYTES: usize = 8 + 8 + 4 + 4;
const REPLY_BYTES: usize = 8 + 1 + 8;

/// What a rank says when it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) epoch: u64,
    pub(super) rank: u32,
    pub(super) world: u32,
}

impl Hello {
    pub(super) fn write(&self, stream: impl Write, seal: &mut Seal) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HELLO_BYTES + TAG_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(self.epoch.to_le_bytes());
        bytes.extend(self.rank.to_le_bytes());
        bytes.extend(self.world.to_le_bytes());
        write_sealed(stream, bytes, seal)
    }

    pub(super) fn read(stream: impl Read, seal: &mut Seal) -> io::Result<Self> {
        let mut bytes = &read_sealed::<HELLO_BYTES>(stream, seal)?[MAGIC.len()..];
        Ok(Self {
            epoch: u64::from_le_bytes(take(&mut bytes)?),
            rank: u32::from_le_bytes(take(&mut bytes)?),
            world: u32::from_le_bytes(take(&mut bytes)?),
        })
    }
}

/// The answer to a [`Hello`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The called rank is in the same epoch.
    Welcome,
    /// The called rank is in a later epoch.
    Outdated { newer: u64 },
    /// The called rank gave this epoch up because of another.
    GaveUp { culprit: u32 },
}

impl Reply {
    /// Length on the wire.
    pub(super) const BYTES: usize = REPLY_BYTES + TAG_BYTES;

    pub(super) fn write(self, stream: impl Write, seal: &mut Seal) -> io::Result<()> {
        let (kind, value) = match self {
            Self::Welcome => (0, 0),
            Self::Outdated { newer } => (1, newer),
            Self::GaveUp { culprit } => (2, u64::from(culprit)),
        };
        let mut bytes = Vec::with_capacity(Self::BYTES);
        bytes.extend(MAGIC);
        bytes.push(kind);
        bytes.extend(value.to_le_bytes());
        write_sealed(stream, bytes, seal)
    }

    pub(super) fn read(stream: impl Read, seal: &mut Seal) -> io::Result<Self> {
        let mut bytes = &read_sealed::<REPLY_BYTES>(stream, seal)?[MAGIC.len()..];
        let [kind] = take(&mut bytes)?;
        let value = u64::from_le_bytes(take(&mut bytes)?);
        match kind {
            0 => Ok(Self::Welcome),
            1 => Ok(Self::Outdated { newer: value }),
            2 => Ok(Self::GaveUp {
                culprit: value as u32,
            }),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("unknown reply {kind}, expected 0 to 2"),
            )),
        }
    }
}

fn write_sealed(mut stream: impl Write, mut bytes: Vec<u8>, seal: &mut Seal) -> io::Result<()> {
    let tag = seal.tag(&bytes, &[]);
    bytes.extend(tag);
    stream.write_all(&bytes)
}

fn read_sealed<const N: usize>(mut stream: impl Read, seal: &mut Seal) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // Judged before more is read: another version may say less, and would be waited for until the deadline.
    stream.read_exact(&mut bytes[..MAGIC.len()])?;
    if bytes[..MAGIC.len()] != MAGIC {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the other side is not a learner rank of this version",
        ));
    }
    stream.read_exact(&mut bytes[MAGIC.len()..])?;
    let mut tag = [0; TAG_BYTES];
    stream.read_exact(&mut tag)?;
    seal.check(&bytes, &[], tag)?;
    Ok(bytes)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> io::Result<[u8; N]> {
    let mut taken = [0; N];
    bytes.read_exact(&mut taken)?;
    Ok(taken)
}

/// A connection after the introduction: the socket and both directions' tags.
#[derive(Debug)]
pub(super) struct Introduced {
    pub(super) stream: TcpStream,
    pub(super) send: Seal,
    pub(super) receive: Seal,
}

impl Introduced {
    pub(super) fn new(stream: TcpStream, keys: &retouch_credentials::LinkKeys) -> Self {
        Self {
            stream,
            send: Seal::new(keys.send),
            receive: Seal::new(keys.receive),
        }
    }

    pub(super) fn say(&mut self, hello: &Hello) -> io::Result<()> {
        hello.write(&self.stream, &mut self.send)
    }

    pub(super) fn hear(&mut self) -> io::Result<Hello> {
        Hello::read(&self.stream, &mut self.receive)
    }

    pub(super) fn reply(&mut self, reply: Reply) -> io::Result<()> {
        reply.write(&self.stream, &mut self.send)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: Hello = Hello {
        epoch: 7,
        rank: 3,
        world: 4,
    };

    fn seal() -> Seal {
        Seal::new([5; 32])
    }

    #[test]
    fn hello_and_reply_round_trip_and_are_sealed() {
        let mut bytes = Vec::new();
        HELLO.write(&mut bytes, &mut seal()).expect("memory");
        let read = Hello::read(bytes.as_slice(), &mut seal()).expect("what was written");
        assert_eq!(read, HELLO);
        for reply in [
            Reply::Welcome,
            Reply::Outdated { newer: 9 },
            Reply::GaveUp { culprit: 2 },
        ] {
            let mut bytes = Vec::new();
            reply.write(&mut bytes, &mut seal()).expect("memory");
            assert_eq!(bytes.len(), Reply::BYTES);
            let read = Reply::read(bytes.as_slice(), &mut seal()).expect("what was written");
            assert_eq!(read, reply);
        }
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            assert!(
                Hello::read(changed.as_slice(), &mut seal()).is_err(),
                "byte {index}"
            );
        }
    }

    #[test]
    fn hostile_bytes_are_refused_or_understood() {
        // Sealed bytes can't be changed; whoever has the key may still say anything.
        let mut valid = Vec::new();
        HELLO.write(&mut valid, &mut seal()).expect("memory");
        retouch_hostile::bombard(&valid[..HELLO_BYTES], |bytes| {
            let tag = seal().tag(bytes, &[]);
            let sealed = [bytes, &tag].concat();
            let _ = Hello::read(sealed.as_slice(), &mut seal());
            let _ = Reply::read(sealed.as_slice(), &mut seal());
        });
    }
}
