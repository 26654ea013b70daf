//! Introduces two processes of a run over a plain socket, and leaves both with keys.
//!
//! The learners' collective moves gigabytes in short ticks, sent and received by two threads at once:
//! a TLS stream would need a lock around both, and would encrypt sums that tell a listener nothing.
//! So TLS 1.3 only introduces: both show their certificates, both derive the same pair of keys from the
//! session (RFC 5705), and from then on every frame carries a tag made with them. Frames can be read
//! on the way, but not made, changed, repeated or moved.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName},
    server::WebPkiClientVerifier,
    version::TLS13,
};

use crate::{
    access::principals, credentials::Credentials, error::CredentialsError, principal::Principal,
};

/// Names the keys' purpose.
const KEY_LABEL: &[u8] = b"EXPERIMENTAL retouch link keys v1";
const ADMITTED: u8 = 1;
const REFUSED: u8 = 2;
const RECORD_HEADER_BYTES: usize = 5;
const KEY_BYTES: usize = 32;

/// Introduces this process to others of one role.
#[derive(Clone, Debug)]
pub struct Handshake(Option<Arc<Mutual>>);

#[derive(Debug)]
struct Mutual {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    peer: Principal,
    peer_name: ServerName<'static>,
}

/// Keys of one connection, one for each direction.
#[derive(Clone)]
pub struct LinkKeys {
    /// For what this side sends.
    pub send: [u8; KEY_BYTES],
    /// For what it receives.
    pub receive: [u8; KEY_BYTES],
}

impl std::fmt::Debug for LinkKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkKeys").finish_non_exhaustive()
    }
}

impl Handshake {
    /// Nobody is asked who it is, and everybody has the same keys: for benchmarks and tests.
    pub fn open() -> Self {
        Self(None)
    }

    pub(crate) fn mutual(
        credentials: &Credentials,
        peer: Principal,
    ) -> Result<Self, CredentialsError> {
        let unusable = CredentialsError::Unusable;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(roots(credentials).map_err(unusable)?);
        let peer_name = ServerName::try_from(peer.dns_name());
        Ok(Self(Some(Arc::new(Mutual {
            client: client_config(credentials, roots.clone(), provider.clone())
                .map_err(unusable)?,
            server: server_config(credentials, roots, provider).map_err(unusable)?,
            peer,
            peer_name: peer_name.map_err(|error| unusable(error.to_string()))?,
        }))))
    }

    /// The side that connected. The socket's own deadlines hold.
    ///
    /// # Errors
    /// If the other side is silent, is not of the run, or does not want this process.
    pub fn call(&self, stream: &TcpStream) -> io::Result<LinkKeys> {
        let Some(mutual) = &self.0 else {
            return Ok(open_keys());
        };
        let connection = ClientConnection::new(mutual.client.clone(), mutual.peer_name.clone());
        let mut connection = connection.map_err(io::Error::other)?;
        let mut records = Records::new(stream);
        while connection.is_handshaking() {
            connection.complete_io(&mut records)?;
        }
        // The other side has not judged our certificate yet.
        let mut admitted = [0];
        while connection
            .reader()
            .read(&mut admitted)
            .or_else(would_block)?
            == 0
        {
            connection.complete_io(&mut records)?;
        }
        if admitted != [ADMITTED] {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the other side does not take this process's certificate",
            ));
        }
        let keys = connection.export_keying_material([0; 2 * KEY_BYTES], KEY_LABEL, None);
        let (ours, theirs) = split(keys.map_err(io::Error::other)?);
        Ok(LinkKeys {
            send: ours,
            receive: theirs,
        })
    }

    /// The side that was connected to. The socket's own deadlines hold.
    ///
    /// # Errors
    /// If the other side is silent, or is not of the run and the right role.
    pub fn answer(&self, stream: &TcpStream) -> io::Result<LinkKeys> {
        let Some(mutual) = &self.0 else {
            return Ok(open_keys());
        };
        let connection = ServerConnection::new(mutual.server.clone());
        let mut connection = connection.map_err(io::Error::other)?;
        let mut records = Records::new(stream);
        while connection.is_handshaking() {
            if let Err(error) = connection.complete_io(&mut records) {
                // What is wrong is in an alert that waits to be sent.
                let _ = connection.write_tls(&mut records);
                return Err(error);
            }
        }
        let checked = check(connection.peer_certificates(), mutual.peer);
        let answer = if checked.is_ok() { ADMITTED } else { REFUSED };
        connection.writer().write_all(&[answer])?;
        while connection.wants_write() {
            connection.write_tls(&mut records)?;
        }
        checked?;
        let keys = connection.export_keying_material([0; 2 * KEY_BYTES], KEY_LABEL, None);
        let (theirs, ours) = split(keys.map_err(io::Error::other)?);
        Ok(LinkKeys {
            send: ours,
            receive: theirs,
        })
    }
}

/// The peer's certificate leads to the authority; it must also be for the right role.
fn check(chain: Option<&[CertificateDer<'_>]>, peer: Principal) -> io::Result<()> {
    let known = chain.and_then(|chain| Some(principals(chain.first()?)));
    let known = known.unwrap_or_default();
    if known.contains(&peer) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the caller's certificate is for {known:?}, expected {peer}"
    )))
}

fn roots(credentials: &Credentials) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for authority in credentials.authorities()? {
        roots.add(authority).map_err(|error| error.to_string())?;
    }
    Ok(roots)
}

fn client_config(
    credentials: &Credentials,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<ClientConfig>, String> {
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_client_auth_cert(credentials.chain()?, credentials.key()?);
    config.map(Arc::new).map_err(|error| error.to_string())
}

fn server_config(
    credentials: &Credentials,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<ServerConfig>, String> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier.map_err(|error| error.to_string())?)
        .with_single_cert(credentials.chain()?, credentials.key()?)
        .map_err(|error| error.to_string())?;
    // Nothing of TLS may follow the introduction.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn open_keys() -> LinkKeys {
    LinkKeys {
        send: [0; KEY_BYTES],
        receive: [0; KEY_BYTES],
    }
}

fn split(keys: [u8; 2 * KEY_BYTES]) -> ([u8; KEY_BYTES], [u8; KEY_BYTES]) {
    let (mut first, mut second) = ([0; KEY_BYTES], [0; KEY_BYTES]);
    first.copy_from_slice(&keys[..KEY_BYTES]);
    second.copy_from_slice(&keys[KEY_BYTES..]);
    (first, second)
}

fn would_block(error: io::Error) -> io::Result<usize> {
    match error.kind() {
        io::ErrorKind::WouldBlock => Ok(0),
        _ => Err(error),
    }
}

/// Hands out one TLS record at a time: what follows the last one is not TLS and must stay in the
/// socket.
struct Records<'a> {
    stream: &'a TcpStream,
    header: [u8; RECORD_HEADER_BYTES],
    header_read: usize,
    header_given: usize,
    body_left: usize,
}

impl<'a> Records<'a> {
    fn new(stream: &'a TcpStream) -> Self {
        Self {
            stream,
            header: [0; RECORD_HEADER_BYTES],
            header_read: 0,
            header_given: RECORD_HEADER_BYTES,
            body_left: 0,
        }
    }

    fn read_header(&mut self) -> io::Result<bool> {
        while self.header_read < RECORD_HEADER_BYTES {
            match self.stream.read(&mut self.header[self.header_read..])? {
                0 => return Ok(false),
                count => self.header_read += count,
            }
        }
        let [_, _, _, high, low] = self.header;
        self.body_left = usize::from(u16::from_be_bytes([high, low]));
        (self.header_read, self.header_given) = (0, 0);
        Ok(true)
    }
}

impl Read for Records<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let at_border = self.header_given == RECORD_HEADER_BYTES && self.body_left == 0;
        if at_border && !self.read_header()? {
            return Ok(0);
        }
        if self.header_given < RECORD_HEADER_BYTES {
            let count = into.len().min(RECORD_HEADER_BYTES - self.header_given);
            let given = self.header_given;
            into[..count].copy_from_slice(&self.header[given..given + count]);
            self.header_given += count;
            return Ok(count);
        }
        let room = into.len().min(self.body_left);
        let count = self.stream.read(&mut into[..room])?;
        self.body_left -= count;
        Ok(count)
    }
}

impl Write for Records<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
