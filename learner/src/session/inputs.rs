//! Fetches what a training task needs before the device is asked for.

use std::collections::HashMap;

use bytes::Bytes;
use retouch_proto::{
    BlobRef, ContentHash,
    task::{TaskFailure, TrainTask},
};
use retouch_worker::{blobs::Retention, session::Blobs};

use crate::{plan, shards};

/// A task with the bytes it refers to.
#[derive(Debug)]
pub(super) struct TrainInputs {
    pub(super) task: TrainTask,
    /// The state to start from; none for the initial one.
    pub(super) state: Option<Bytes>,
    /// The policies that made the samples.
    pub(super) versions: HashMap<ContentHash, Bytes>,
    /// What a checkpoint holds besides the state: the policies that are still to sample, in the task's order.
    pub(super) earlier: Vec<Bytes>,
    /// Per group, x0 and condition; none where this rank's shards have no use for it.
    pub(super) groups: Vec<Option<GroupBytes>>,
}

/// A group's blobs.
#[derive(Debug)]
pub(super) struct GroupBytes {
    pub(super) x0: Bytes,
    pub(super) condition: Bytes,
}

/// Fetches the state, the policies and this rank's part of the groups.
pub(super) async fn fetch(
    blobs: &Blobs,
    task: TrainTask,
    gradient_shards: usize,
) -> Result<TrainInputs, TaskFailure> {
    let needed = needed_groups(&task, gradient_shards);
    let wanted: Vec<BlobRef> = needed
        .iter()
        .flat_map(|&i| [task.groups[i].x0.clone(), task.groups[i].condition.clone()])
        .collect();
    let until = Retention::Until(task.iteration);
    let state = async {
        match &task.state {
            // This rank's own results are pinned; another's are of use until the next is committed.
            Some(state) => blobs.fetch(state, until).await.map(Some),
            None => Ok(None),
        }
    };
    // One rank writes the checkpoint.
    let earlier: Vec<BlobRef> = match task.collective.rank {
        0 => task
            .earlier
            .iter()
            .map(|policy| policy.adapter.clone())
            .collect(),
        _ => Vec::new(),
    };
    let (state, versions, earlier, data) = tokio::try_join!(
        state,
        blobs.fetch_all(&task.versions, until),
        blobs.fetch_all(&earlier, until),
        blobs.fetch_all(&wanted, until)
    )?;
    let versions = task
        .versions
        .iter()
        .map(|version| version.hash)
        .zip(versions)
        .collect();
    let mut groups: Vec<Option<GroupBytes>> = task.groups.iter().map(|_| None).collect();
    for (index, pair) in needed.into_iter().zip(data.chunks_exact(2)) {
        groups[index] = Some(GroupBytes {
            x0: pair[0].clone(),
            condition: pair[1].clone(),
        });
    }
    Ok(TrainInputs {
        task,
        state,
        versions,
        earlier,
        groups,
    })
}

fn needed_groups(task: &TrainTask, gradient_shards: usize) -> Vec<usize> {
    let sizes: Vec<usize> = task
        .groups
        .iter()
        .map(|group| group.advantages.len())
        .collect();
    let (rank, world) = (
        task.collective.rank as usize,
        task.collective.world as usize,
    );
    plan::needed_groups(
        gradient_shards,
        shards::owned(gradient_shards, rank, world),
        &sizes,
    )
}
