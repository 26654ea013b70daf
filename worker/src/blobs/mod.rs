//! Content-addressed bulk data, from worker to worker (A4).
//!
//! In reading order: [`BlobStore`] holds bytes under their hash, [`grpc`] serves
//! them, [`BlobClient`] fetches them from whoever has them and thereby becomes an
//! owner too.

mod client;
mod entries;
pub(crate) mod grpc;
mod partial;
mod store;

use std::net::SocketAddr;

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::{server, token::TokenCheck};

pub use client::{BlobClient, FetchError, FetchLimits};
pub use entries::Retention;
pub use store::{BlobReader, BlobStore, BlobStoreError, BlobStoreOptions, Changes, Usage};

/// Serves a store's blobs to callers that know the token, until `stop` is cancelled;
/// gives the address with the port that was chosen.
///
/// # Errors
///
/// If the address can't be opened.
pub async fn serve(
    store: BlobStore,
    token: &str,
    listen: SocketAddr,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let (listener, address) = server::bind(listen).await?;
    let service = grpc::BlobService::new(store, TokenCheck::new(token));
    server::spawn(listener, service, Routes::default(), stop);
    Ok(address)
}

#[cfg(test)]
mod tests;
