//! What rank 0 makes for a new epoch of ranks that meet through NCCL.

use retouch_proto::task::{MintResult, MintTask, TaskFailure};

/// Mints an epoch's unique id.
#[cfg(feature = "nccl")]
pub(super) async fn mint(task: MintTask) -> Result<MintResult, TaskFailure> {
    // The library may have to be read from a slow disk.
    let minted = tokio::task::spawn_blocking(crate::collective::nccl::mint)
        .await
        .map_err(TaskFailure::retryable)?;
    let unique_id = minted.map_err(|error| TaskFailure {
        retryable: !error.is_lasting(),
        ..TaskFailure::lasting(error)
    })?;
    tracing::info!(epoch = %task.epoch, id = ?unique_id, "minted the epoch's unique id");
    Ok(MintResult {
        epoch: task.epoch,
        unique_id,
    })
}

/// Says that this build can't.
#[cfg(not(feature = "nccl"))]
pub(super) async fn mint(_task: MintTask) -> Result<MintResult, TaskFailure> {
    let missing = crate::collective::CollectiveError::NotBuilt;
    Err(TaskFailure::lasting(missing))
}
