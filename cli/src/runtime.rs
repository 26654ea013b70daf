//! What runs a command's futures.

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
