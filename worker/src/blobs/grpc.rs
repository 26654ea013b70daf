//! The `Blobs` service and its client side.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use retouch_proto::{
    ContentHash,
    grpc::{
        FetchChunk, FetchRequest, TOKEN_METADATA_KEY,
        blobs_client::BlobsClient,
        blobs_server::{Blobs, BlobsServer},
    },
    limits::{BLOB_CHUNK_BYTES, BLOB_MESSAGE_BYTES_MAX},
};
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_stream::{Stream, StreamExt};
use tonic::{
    Request, Response, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use super::store::{BlobReader, BlobStore};
use crate::token::TokenCheck;

/// Window of one transfer: enough for 10 Gbit/s at a round trip of 6 ms.
const WINDOW_BYTES: u32 = 8 << 20;
/// Transfers that one worker serves at a time; more callers are sent to other owners.
const STREAMS_MAX: usize = 64;

/// Serves the blobs of a store to callers that know the token.
#[derive(Clone, Debug)]
pub(crate) struct BlobService {
    store: BlobStore,
    token: TokenCheck,
    streams: Arc<Semaphore>,
}

/// A served blob, chunk by chunk.
type ChunkStream = Pin<Box<dyn Stream<Item = Result<FetchChunk, Status>> + Send>>;

impl BlobService {
    /// The service over a store.
    pub(crate) fn new(store: BlobStore, token: TokenCheck) -> Self {
        Self {
            store,
            token,
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        }
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
        self.token.check(request.metadata())?;
        let FetchRequest { hash, offset } = request.into_inner();
        let hash = hash.as_slice().try_into().map(ContentHash);
        let hash = hash.map_err(|_| Status::invalid_argument("hash: a hash has 32 bytes"))?;
        let permit = self.streams.clone().try_acquire_owned();
        let permit = permit.map_err(|_| {
            Status::resource_exhausted(format!("{STREAMS_MAX} transfers are under way"))
        })?;
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
        Ok(Response::new(chunks(reader, offset, permit).await?))
    }
}

async fn chunks(
    reader: BlobReader,
    offset: u64,
    permit: OwnedSemaphorePermit,
) -> Result<ChunkStream, Status> {
    match reader {
        BlobReader::Memory(bytes) => Ok(Box::pin(memory_chunks(
            bytes.slice(offset as usize..),
            permit,
        ))),
        BlobReader::File(file, _) => {
            let mut file = tokio::fs::File::from_std(file);
            let seek = file.seek(std::io::SeekFrom::Start(offset)).await;
            seek.map_err(|error| Status::internal(error.to_string()))?;
            let (sender, receiver) = tokio::sync::mpsc::channel(2);
            tokio::spawn(send_file(file, sender, permit));
            Ok(Box::pin(tokio_stream::wrappers::ReceiverStream::new(
                receiver,
            )))
        }
    }
}

/// Slices of the bytes, nothing copied.
fn memory_chunks(
    bytes: Bytes,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<FetchChunk, Status>> {
    let starts = (0..bytes.len()).step_by(BLOB_CHUNK_BYTES);
    tokio_stream::iter(starts).map(move |start| {
        // The permit is held for as long as the stream lives.
        let _ = &permit;
        let end = bytes.len().min(start + BLOB_CHUNK_BYTES);
        Ok(FetchChunk {
            data: bytes.slice(start..end),
        })
    })
}

/// Ends when the file does, or when the caller is gone.
async fn send_file(
    mut file: tokio::fs::File,
    sender: tokio::sync::mpsc::Sender<Result<FetchChunk, Status>>,
    _permit: OwnedSemaphorePermit,
) {
    loop {
        let mut chunk = bytes::BytesMut::with_capacity(BLOB_CHUNK_BYTES);
        let message = match file.read_buf(&mut chunk).await {
            Ok(0) => return,
            Ok(_) => Ok(FetchChunk {
                data: chunk.freeze(),
            }),
            Err(error) => Err(Status::internal(error.to_string())),
        };
        if sender.send(message).await.is_err() {
            return;
        }
    }
}

/// A connection to an owner, made when it is first used.
pub(super) fn connect_lazily(address: &str, deadline: Duration) -> Result<Channel, String> {
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
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

impl BlobStream {
    pub(super) async fn next_chunk(&mut self) -> Result<Option<Bytes>, String> {
        let chunk = self.0.message().await.map_err(|status| describe(&status))?;
        Ok(chunk.map(|chunk| chunk.data))
    }
}

pub(super) async fn open_stream(
    channel: Channel,
    token: &str,
    hash: &ContentHash,
    offset: u64,
) -> Result<BlobStream, String> {
    let mut request = Request::new(FetchRequest {
        hash: hash.0.to_vec(),
        offset,
    });
    let token = MetadataValue::try_from(token).map_err(|error| error.to_string())?;
    request.metadata_mut().insert(TOKEN_METADATA_KEY, token);
    let mut client = BlobsClient::new(channel).max_decoding_message_size(BLOB_MESSAGE_BYTES_MAX);
    let response = client
        .fetch(request)
        .await
        .map_err(|status| describe(&status))?;
    Ok(BlobStream(response.into_inner()))
}

fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
