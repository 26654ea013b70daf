//! Content-addressed bulk data, from worker to worker (A4).
//!
//! In reading order: [`BlobStore`] holds bytes under their hash, `blobs_grpc` serves
//! them, [`BlobClient`] fetches them from whoever has them and thereby becomes an
//! owner too. `audience` and `search` are why a blob that many want spreads as a tree.

mod audience;
pub(crate) mod blobs_grpc;
mod client;
mod entries;
mod partial;
mod search;
mod store;

use std::net::SocketAddr;

use retouch_credentials::Access;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::server;

pub use client::{BlobClient, BlobClientOptions, FetchError, FetchLimits};
pub use entries::Retention;
pub use store::{BlobReader, BlobStore, BlobStoreError, BlobStoreOptions, Changes};

/// Serves a store's blobs to the run's workers and to whoever controls it, until `stop` is cancelled;
/// gives the address with the port that was chosen.
///
/// # Errors
///
/// If the address can't be opened or the certificate not be used.
pub async fn serve(
    store: BlobStore,
    access: &Access,
    listen: SocketAddr,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let (listener, address) = server::bind(listen).await?;
    let service = blobs_grpc::BlobService::new(store, access.clone());
    server::spawn(listener, access, service, Routes::default(), stop)
        .map_err(std::io::Error::other)?;
    Ok(address)
}

#[cfg(test)]
mod tests;
