//! What runs a command's futures.

use std::thread;

use anyhow::Context;
use tokio::sync::oneshot;

/// Network and blob transfers of a worker; tensors are computed on threads of their own.
const NETWORK_THREADS: usize = 2;

/// For commands that only wait: one thread is enough, and children die with it.
pub(crate) fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future)
}

/// For workers: blobs are served while others are fetched.
pub(crate) fn on_network_threads(
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(NETWORK_THREADS)
        .enable_all()
        .build()?
        .block_on(work)
}

/// A main thread's: the default of others is a quarter of it.
const STACK_BYTES: usize = 8 << 20;

/// Runs what computes for long on a thread of its own, so that signals are heard meanwhile. A caller that no longer waits
/// leaves the thread to the process's end.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let (sender, done) = oneshot::channel();
    thread::Builder::new()
        .name("work".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || drop(sender.send(work())))?;
    done.await.context("the thread that does the work panicked")
}
