//! Owners that misbehave.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use retouch_proto::{
    BlobAddress,
    grpc::{
        Busy, FetchChunk, FetchRequest,
        blobs_server::{Blobs, BlobsServer},
    },
};
use tokio_stream::Stream;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

#[derive(Clone, Debug)]
enum Behaviour {
    Whole(Bytes),
    EndsEarly(Bytes),
    Silent,
    Busy(String),
}

#[derive(Clone, Debug)]
pub(super) struct BadOwner {
    behaviour: Behaviour,
    offset: Arc<AtomicU64>,
}

pub(super) struct Spawned {
    pub(super) address: BlobAddress,
    /// The last offset that was asked for.
    pub(super) offset: Arc<AtomicU64>,
}

impl BadOwner {
    pub(super) fn that_sends(bytes: Bytes) -> Self {
        Self {
            behaviour: Behaviour::Whole(bytes),
            offset: Arc::default(),
        }
    }

    pub(super) fn that_tells_offsets(bytes: Bytes) -> Self {
        Self::that_sends(bytes)
    }

    /// Sends these bytes and breaks off.
    pub(super) fn that_ends_early(bytes: Bytes) -> Self {
        Self {
            behaviour: Behaviour::EndsEarly(bytes),
            offset: Arc::default(),
        }
    }

    pub(super) fn that_is_silent() -> Self {
        Self {
            behaviour: Behaviour::Silent,
            offset: Arc::default(),
        }
    }

    /// Has no time, and names another.
    pub(super) fn that_is_busy(other: &BlobAddress) -> Self {
        let BlobAddress::Grpc(other) = other else {
            unreachable!("a worker")
        };
        Self {
            behaviour: Behaviour::Busy(other.clone()),
            offset: Arc::default(),
        }
    }

    pub(super) async fn spawn(self) -> Spawned {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = BlobAddress::Grpc(listener.local_addr().unwrap().to_string());
        let offset = self.offset.clone();
        let server = Server::builder().add_service(BlobsServer::new(self));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        Spawned { address, offset }
    }
}

type ChunkStream = Pin<Box<dyn Stream<Item = Result<FetchChunk, Status>> + Send>>;

#[tonic::async_trait]
impl Blobs for BadOwner {
    type FetchStream = ChunkStream;

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<ChunkStream>, Status> {
        let offset = request.into_inner().offset;
        self.offset.store(offset, Ordering::SeqCst);
        let (bytes, end) = match &self.behaviour {
            Behaviour::Silent => return Ok(Response::new(Box::pin(tokio_stream::pending()))),
            Behaviour::Busy(other) => {
                let owners = vec![other.clone()];
                let chunk = FetchChunk {
                    data: Bytes::new(),
                    busy: Some(Busy { owners }),
                };
                return Ok(Response::new(Box::pin(tokio_stream::once(Ok(chunk)))));
            }
            Behaviour::Whole(bytes) => (bytes, None),
            Behaviour::EndsEarly(bytes) => (bytes, Some(Err(Status::unavailable("broke off")))),
        };
        let rest = bytes.slice((offset as usize).min(bytes.len())..);
        let chunks: Vec<Bytes> = rest
            .chunks(1 << 20)
            .map(|chunk| rest.slice_ref(chunk))
            .collect();
        let chunks = chunks
            .into_iter()
            .map(|data| Ok(FetchChunk { data, busy: None }));
        Ok(Response::new(Box::pin(tokio_stream::iter(
            chunks.chain(end),
        ))))
    }
}
