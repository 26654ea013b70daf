//! The `Blobs` service and its client side.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use retouch_credentials::{Access, Principal, access::Peer, explain};
use retouch_proto::{
    BlobAddress, ContentHash,
    grpc::{
        Busy, FetchChunk, FetchRequest,
        blobs_client::BlobsClient,
        blobs_server::{Blobs, BlobsServer},
    },
    limits::{ADDRESS_BYTES_MAX, BLOB_CHUNK_BYTES, BLOB_MESSAGE_BYTES_MAX},
};
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming, transport::Channel};

use super::{
    audience::{Audiences, NAMED_MAX},
    store::{BlobReader, BlobStore},
};

/// Window of one transfer: enough for 10 Gbit/s at a round trip of 6 ms.
const WINDOW_BYTES: u32 = 8 << 20;
/// Transfers that one worker serves at a time; more callers are sent to other owners.
const STREAMS_MAX: usize = 64;

/// Serves the blobs of a store to the run's workers, and to whoever controls it.
#[derive(Clone, Debug)]
pub(crate) struct BlobService {
    store: BlobStore,
    access: Access,
    streams: Arc<Semaphore>,
    audiences: Arc<Mutex<Audiences>>,
}

/// Held for as long as a caller is served.
#[derive(Debug)]
struct Seat {
    audiences: Arc<Mutex<Audiences>>,
    hash: ContentHash,
    /// Where the caller serves what it has got.
    owner: Option<BlobAddress>,
    got_all: bool,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let owner = self.owner.take().filter(|_| self.got_all);
        lock(&self.audiences).leave(&self.hash, owner);
    }
}

fn lock(audiences: &Mutex<Audiences>) -> MutexGuard<'_, Audiences> {
    audiences.lock().unwrap_or_else(|e| e.into_inner())
}

/// A served blob, chunk by chunk.
type ChunkStream = Pin<Box<dyn Stream<Item = Result<FetchChunk, Status>> + Send>>;

impl BlobService {
    /// The service over a store.
    pub(crate) fn new(store: BlobStore, access: Access) -> Self {
        Self {
            store,
            access,
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            audiences: Arc::default(),
        }
    }

    /// A place in the audience of a blob, or who else may have one.
    fn seat(&self, hash: ContentHash, own_address: &str) -> Result<Seat, Vec<BlobAddress>> {
        let Ok(permit) = self.streams.clone().try_acquire_owned() else {
            return Err(Vec::new());
        };
        lock(&self.audiences).enter(hash, |hash| self.store.holds(hash))?;
        Ok(Seat {
            audiences: self.audiences.clone(),
            hash,
            owner: format!("grpc://{own_address}").parse().ok(),
            got_all: false,
            _permit: permit,
        })
    }

    /// As a part of a server.
    pub(crate) fn into_server(self) -> BlobsServer<Self> {
        BlobsServer::new(self).max_decoding_message_size(BLOB_MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Blobs for BlobService {
    type FetchStream = ChunkStream;

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<ChunkStream>, Status> {
        // People look at pictures; the coordinator alone has no business with bulk bytes (A4).
        self.access.admit(&request, &Principal::JOINING)?;
        let FetchRequest {
            hash,
            offset,
            own_address,
        } = request.into_inner();
        let hash = hash.as_slice().try_into().map(ContentHash);
        let hash = hash.map_err(|_| Status::invalid_argument("hash: a hash has 32 bytes"))?;
        let reader = self
            .store
            .reader(&hash)
            .map_err(|error| Status::internal(error.to_string()))?;
        let reader =
            reader.ok_or_else(|| Status::not_found(format!("blob {hash} is not held here")))?;
        if offset > reader.size_bytes() {
            let size = reader.size_bytes();
            return Err(Status::out_of_range(format!(
                "offset {offset} is beyond the blob's {size} bytes"
            )));
        }
        let seat = match self.seat(hash, &own_address) {
            Ok(seat) => seat,
            Err(others) => return Ok(Response::new(busy(others))),
        };
        Ok(Response::new(chunks(reader, offset, seat).await?))
    }
}

/// The whole answer of an owner without time.
fn busy(others: Vec<BlobAddress>) -> ChunkStream {
    let address = |owner| match owner {
        BlobAddress::Grpc(address) => Some(address),
        BlobAddress::File(_) => None,
    };
    let chunk = FetchChunk {
        data: Bytes::new(),
        busy: Some(Busy {
            owners: others.into_iter().filter_map(address).collect(),
        }),
    };
    Box::pin(tokio_stream::once(Ok(chunk)))
}

async fn chunks(reader: BlobReader, offset: u64, seat: Seat) -> Result<ChunkStream, Status> {
    match reader {
        BlobReader::Memory(bytes) => Ok(Box::pin(memory_chunks(
            bytes.slice(offset as usize..),
            seat,
        ))),
        BlobReader::File(file, _) => {
            let mut file = tokio::fs::File::from_std(file);
            let seek = file.seek(std::io::SeekFrom::Start(offset)).await;
            seek.map_err(|error| Status::internal(error.to_string()))?;
            let (sender, receiver) = tokio::sync::mpsc::channel(2);
            tokio::spawn(send_file(file, sender, seat));
            Ok(Box::pin(tokio_stream::wrappers::ReceiverStream::new(
                receiver,
            )))
        }
    }
}

/// Slices of the bytes, nothing copied.
fn memory_chunks(bytes: Bytes, mut seat: Seat) -> impl Stream<Item = Result<FetchChunk, Status>> {
    let starts = (0..bytes.len()).step_by(BLOB_CHUNK_BYTES);
    tokio_stream::iter(starts).map(move |start| {
        let end = bytes.len().min(start + BLOB_CHUNK_BYTES);
        // All of it, and not only its flag, is held for as long as the stream lives.
        let seat = &mut seat;
        seat.got_all = end == bytes.len();
        Ok(chunk(bytes.slice(start..end)))
    })
}

fn chunk(data: Bytes) -> FetchChunk {
    FetchChunk { data, busy: None }
}

/// Ends when the file does, or when the caller is gone.
async fn send_file(
    mut file: tokio::fs::File,
    sender: tokio::sync::mpsc::Sender<Result<FetchChunk, Status>>,
    mut seat: Seat,
) {
    loop {
        let mut data = bytes::BytesMut::with_capacity(BLOB_CHUNK_BYTES);
        let message = match file.read_buf(&mut data).await {
            Ok(0) => {
                seat.got_all = true;
                return;
            }
            Ok(_) => Ok(chunk(data.freeze())),
            Err(error) => Err(Status::internal(error.to_string())),
        };
        if sender.send(message).await.is_err() {
            return;
        }
    }
}

/// A connection to an owner, made when it is first used.
pub(super) fn connect_lazily(
    access: &Access,
    address: &str,
    deadline: Duration,
) -> Result<Channel, String> {
    let endpoint = access.endpoint(address, Peer::Worker);
    let endpoint = endpoint.map_err(|error| error.to_string())?;
    Ok(endpoint
        .connect_timeout(deadline)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect_lazy())
}

/// A blob on its way from an owner.
#[derive(Debug)]
pub(super) struct BlobStream(Streaming<FetchChunk>);

/// What comes next from an owner.
#[derive(Debug)]
pub(super) enum Piece {
    /// Bytes of the blob.
    Data(Bytes),
    /// Nothing: it serves others, and these may have the blob from it.
    Busy(Vec<BlobAddress>),
    /// It is over.
    End,
}

impl BlobStream {
    pub(super) async fn next(&mut self) -> Result<Piece, String> {
        let chunk = self.0.message().await.map_err(|status| explain(&status))?;
        Ok(match chunk {
            None => Piece::End,
            Some(FetchChunk {
                busy: Some(busy), ..
            }) => Piece::Busy(addresses(busy)),
            Some(FetchChunk { data, .. }) => Piece::Data(data),
        })
    }
}

/// Nonsense is left out: other owners may know better.
fn addresses(busy: Busy) -> Vec<BlobAddress> {
    let sane = |address: &String| address.len() <= ADDRESS_BYTES_MAX;
    let owners = busy.owners.into_iter().take(NAMED_MAX).filter(sane);
    owners
        .filter_map(|address| format!("grpc://{address}").parse().ok())
        .collect()
}

pub(super) async fn open_stream(
    channel: Channel,
    hash: &ContentHash,
    offset: u64,
    own_address: &str,
) -> Result<BlobStream, String> {
    let request = FetchRequest {
        hash: hash.0.to_vec(),
        offset,
        own_address: own_address.to_owned(),
    };
    let mut client = BlobsClient::new(channel).max_decoding_message_size(BLOB_MESSAGE_BYTES_MAX);
    let response = client
        .fetch(request)
        .await
        .map_err(|status| explain(&status))?;
    Ok(BlobStream(response.into_inner()))
}
