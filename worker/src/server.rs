//! The services of a worker, on one port.

use std::{net::SocketAddr, time::Duration};

use retouch_credentials::{Access, CredentialsError, Strangers};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::server::TcpIncoming};

use crate::blobs::blobs_grpc::BlobService;

const WINDOW_BYTES: u32 = 8 << 20;
const KEEPALIVE: Duration = Duration::from_secs(10);
const STREAMS_PER_CONNECTION_MAX: u32 = 128;

/// Opens the port.
pub(crate) async fn bind(listen: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Serves blobs, and what else a role has, in the background until the token is cancelled.
///
/// # Errors
/// If the certificate can't be used.
pub(crate) fn spawn(
    listener: TcpListener,
    access: &Access,
    blobs: BlobService,
    routes: Routes,
    stop: CancellationToken,
) -> Result<(), CredentialsError> {
    let server = access
        .server(Strangers::Refused)?
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
    Ok(())
}
