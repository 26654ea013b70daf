//! The services of a worker, on one port.

use std::{net::SocketAddr, time::Duration};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

use crate::blobs::grpc::BlobService;

const WINDOW_BYTES: u32 = 8 << 20;
const KEEPALIVE: Duration = Duration::from_secs(10);
const STREAMS_PER_CONNECTION_MAX: u32 = 128;

/// Serves blobs, and what else a role has, until the token is cancelled.
pub(crate) async fn bind(listen: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Runs the services in the background until the token is cancelled.
pub(crate) fn spawn(
    listener: TcpListener,
    blobs: BlobService,
    routes: Routes,
    stop: CancellationToken,
) {
    let server = Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_routes(routes)
        .add_service(blobs.into_server());
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(async move {
        let served = server
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "the worker's services ended");
        }
    });
}
