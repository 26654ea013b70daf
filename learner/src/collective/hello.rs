//! The first bytes between two ranks: who is calling, for which epoch.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

const MAGIC: [u8; 8] = *b"RTCHCOL1";
const HELLO_BYTES: usize = 8 + 32 + 8 + 4 + 4;

/// What a rank says when it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// Digest of the run and its join token: strangers are turned away.
    pub(super) secret: [u8; 32],
    pub(super) epoch: u64,
    pub(super) rank: u32,
    pub(super) world: u32,
}

impl Hello {
    pub(super) fn write(&self, mut stream: &TcpStream) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HELLO_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(self.secret);
        bytes.extend(self.epoch.to_le_bytes());
        bytes.extend(self.rank.to_le_bytes());
        bytes.extend(self.world.to_le_bytes());
        stream.write_all(&bytes)
    }

    pub(super) fn read(mut stream: &TcpStream) -> io::Result<Self> {
        check_magic(stream)?;
        Ok(Self {
            secret: read_array(&mut stream)?,
            epoch: u64::from_le_bytes(read_array(&mut stream)?),
            rank: u32::from_le_bytes(read_array(&mut stream)?),
            world: u32::from_le_bytes(read_array(&mut stream)?),
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
    pub(super) const BYTES: usize = 8 + 1 + 8;

    pub(super) fn write(self, mut stream: &TcpStream) -> io::Result<()> {
        let (kind, value) = match self {
            Self::Welcome => (0, 0),
            Self::Outdated { newer } => (1, newer),
            Self::GaveUp { culprit } => (2, u64::from(culprit)),
        };
        let mut bytes = Vec::with_capacity(Self::BYTES);
        bytes.extend(MAGIC);
        bytes.push(kind);
        bytes.extend(value.to_le_bytes());
        stream.write_all(&bytes)
    }

    pub(super) fn read(mut stream: &TcpStream) -> io::Result<Self> {
        check_magic(stream)?;
        let [kind] = read_array(&mut stream)?;
        let value = u64::from_le_bytes(read_array(&mut stream)?);
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

fn check_magic(mut stream: &TcpStream) -> io::Result<()> {
    if read_array(&mut stream)? == MAGIC {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "the other side is not a learner rank of this version",
    ))
}

fn read_array<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
