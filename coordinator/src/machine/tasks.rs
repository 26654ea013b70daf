//! What an assignment says: everything a worker needs for its task, with owners for every blob (A4).

use std::net::SocketAddr;

use retouch_proto::task::{
    Assignment, CollectiveEpoch, EarlierPolicy, MintTask, RolloutTask, ScoreTask, Task, TrainGroup,
    TrainTask,
};
use retouch_proto::{BlobRef, GroupId, LeaseId};

use super::Machine;
use super::learning::{Purpose, Rank};
use super::leases::Work;
use super::record::{Blob, KeptGroup};

impl Machine {
    /// A lease's assignment, made for each answer that carries it: owners may have changed since the last one.
    pub(super) fn assignment(&mut self, id: LeaseId) -> Option<Assignment> {
        let lease = self.leases.get(id)?;
        let lease_ms = lease.deadline_ms.saturating_sub(self.timers.now_ms());
        let task = match lease.work {
            Work::Rollout(group) => Task::Rollout(self.rollout_task(group)?),
            Work::Score(group) => Task::Score(self.score_task(group)?),
            Work::Train => Task::Train(self.train_task(id)?),
            Work::Mint => Task::Mint(self.mint_task(id)?),
        };
        Some(Assignment {
            lease: id,
            lease_ms,
            task,
        })
    }

    fn rollout_task(&mut self, id: GroupId) -> Option<RolloutTask> {
        let group = self.open.group(id)?;
        let row = self.prompts.row(group.drawn.row).clone();
        let adapter = self.progress.policy_of(id.iteration).adapter;
        Some(RolloutTask {
            group: id,
            prompt: row.prompt,
            requirement: row.requirement,
            images: row.images,
            version: adapter.map(|adapter| self.reference(adapter)),
            group_size: self.config.rollout.group_size,
        })
    }

    fn score_task(&mut self, id: GroupId) -> Option<ScoreTask> {
        let group = self.open.group(id)?;
        let row = self.prompts.row(group.drawn.row).clone();
        let sampled = group.sampled.as_ref()?;
        let blobs = |images: &[BlobRef]| images.iter().map(Blob::of).collect();
        let (sources, edits) = (blobs(&sampled.sources_png), blobs(&sampled.edits_png));
        Some(ScoreTask {
            group: id,
            prompt: row.prompt,
            requirement: row.requirement,
            sources_png: self.references(sources),
            edits_png: self.references(edits),
        })
    }

    /// One rank's task.
    fn train_task(&mut self, lease: LeaseId) -> Option<TrainTask> {
        let training = self.learning.training()?;
        let ranks = &training.ranks;
        let rank = ranks.iter().position(|rank| rank.lease == lease)?;
        let peers = ranks
            .iter()
            .filter_map(|rank| self.collective_address(rank));
        let collective = CollectiveEpoch {
            epoch: training.epoch,
            rank: rank as u32,
            world: ranks.len() as u32,
            peers: peers.collect(),
            unique_id: self.learning.collective.unique_id(),
        };
        let (iteration, checkpoint) = (training.iteration, training.checkpoint);
        let kept = match training.purpose {
            Purpose::Learn => self.open.kept(iteration).to_vec(),
            Purpose::WriteDown => Vec::new(),
        };
        let versions = self.versions_of(&kept);
        let earlier = match checkpoint {
            true => self.progress.policies_before(iteration),
            false => Vec::new(),
        };
        let earlier = earlier.into_iter().filter_map(|policy| {
            Some(EarlierPolicy {
                iteration: policy.iteration,
                adapter: self.reference(policy.adapter?),
            })
        });
        let earlier = earlier.collect();
        let state = self.progress.committed().state;
        let state = state.map(|state| self.reference(state));
        let groups = kept
            .into_iter()
            .filter_map(|kept| self.train_group(kept))
            .collect();
        Some(TrainTask {
            iteration,
            collective,
            state,
            versions,
            groups,
            checkpoint,
            earlier,
        })
    }

    fn collective_address(&self, rank: &Rank) -> Option<SocketAddr> {
        self.workers.get(&rank.member.0)?.collective_address
    }

    /// The adapters that the groups were sampled with, each once: v_old is evaluated with exactly these (A6).
    fn versions_of(&mut self, kept: &[KeptGroup]) -> Vec<BlobRef> {
        let policies = kept
            .iter()
            .filter_map(|kept| self.open.group(kept.group)?.policy?.adapter);
        let mut adapters: Vec<Blob> = policies.collect();
        adapters.sort_by_key(|blob| blob.hash);
        adapters.dedup();
        self.references(adapters)
    }

    fn train_group(&mut self, kept: KeptGroup) -> Option<TrainGroup> {
        let group = self.open.group(kept.group)?;
        let version = group.policy.and_then(|policy| policy.hash());
        let latents: Vec<Blob> = group.latents().collect();
        let [x0, condition] = self.references(latents).try_into().ok()?;
        Some(TrainGroup {
            group: kept.group,
            x0,
            condition,
            version,
            advantages: kept.advantages,
        })
    }

    fn mint_task(&self, lease: LeaseId) -> Option<MintTask> {
        let minting = self.learning.minting.as_ref()?;
        (minting.lease == lease).then_some(MintTask {
            epoch: minting.epoch,
        })
    }

    /// References to blobs for somebody who needs them.
    pub(super) fn references(&mut self, blobs: Vec<Blob>) -> Vec<BlobRef> {
        blobs.into_iter().map(|blob| self.reference(blob)).collect()
    }

    fn reference(&mut self, blob: Blob) -> BlobRef {
        self.blobs.reference(blob, &self.workers)
    }
}
