//! A group's way from drawn to scored, and the open iteration that it belongs to.

use std::collections::BTreeSet;

use retouch_proto::status::{GroupCounts, IterationMetrics};
use retouch_proto::task::{RolloutResult, ScoreResult};
use retouch_proto::{BlobRef, ContentHash, GroupId, Iteration, LeaseId, WorkerId};

use super::record::{Blob, DrawnGroup, GroupRecord, KeptGroup, OpenRecord, Policy};

/// Failed fetches after which a group counts as one that cannot be done.
pub(super) const FETCH_FAILURES_MAX: u32 = 16;

/// Where a group is on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum GroupState {
    /// Waits for a rollout worker.
    Queued,
    /// Is being sampled.
    Sampling(LeaseId),
    /// Waits for a reward worker.
    Sampled,
    /// Is being scored.
    Scoring(LeaseId),
    /// Has scores.
    Scored,
    /// Was given up (A5: with its reason, and without a score).
    Dropped(String),
}

impl GroupState {
    /// The lease under which somebody works on it.
    pub(super) fn lease(&self) -> Option<LeaseId> {
        match self {
            Self::Sampling(lease) | Self::Scoring(lease) => Some(*lease),
            _ => None,
        }
    }
}

/// A group of an open iteration.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// As drawn.
    pub drawn: DrawnGroup,
    /// Where it is. The iteration counts its groups by state, so only [`OpenIteration::set_state`] changes it.
    state: GroupState,
    /// The policy that sampled it (A6).
    pub policy: Option<Policy>,
    /// Its sampling; kept while lost blobs are made again, to be compared.
    pub sampled: Option<RolloutResult>,
    /// Its scores; kept while lost blobs are made again.
    pub scored: Option<ScoreResult>,
    /// Failed attempts in the present stage.
    pub attempts: u32,
    /// Attempts that failed for want of a blob; making it again does not clear them.
    pub fetch_failures: u32,
    /// Who failed it.
    pub avoid: Vec<WorkerId>,
    /// It is not given out before this time.
    pub not_before_ms: u64,
}

impl Group {
    fn new(drawn: DrawnGroup) -> Self {
        Self {
            drawn,
            state: GroupState::Queued,
            policy: None,
            sampled: None,
            scored: None,
            attempts: 0,
            fetch_failures: 0,
            avoid: Vec::new(),
            not_before_ms: 0,
        }
    }

    /// A group as the record has it. One that was dropped gets another chance: the cause may have been removed.
    fn restored(record: GroupRecord) -> Self {
        let mut group = Self::new(record.drawn);
        if let Some((policy, sampled)) = record.sampled {
            group.policy = Some(policy);
            group.sampled = Some(sampled);
            group.state = GroupState::Sampled;
            if record.scored.is_some() {
                group.scored = record.scored;
                group.state = GroupState::Scored;
            }
        }
        group
    }

    /// Where it is.
    pub(super) fn state(&self) -> &GroupState {
        &self.state
    }

    /// Its rewards in sample order, once it has some.
    pub(super) fn rewards(&self) -> Option<Vec<f64>> {
        let scored = self
            .scored
            .as_ref()
            .filter(|_| self.state == GroupState::Scored)?;
        Some(scored.scores.iter().map(|score| score.reward).collect())
    }

    /// The images that a judge needs: the sources and the candidates.
    pub(super) fn images(&self) -> impl Iterator<Item = Blob> {
        let sampled = self.sampled.iter();
        sampled
            .flat_map(|s| s.sources_png.iter().chain(&s.edits_png))
            .map(Blob::of)
    }

    /// What a learner needs: clean latents and condition.
    pub(super) fn latents(&self) -> impl Iterator<Item = Blob> {
        self.sampled
            .iter()
            .flat_map(|sampled| [&sampled.x0, &sampled.condition])
            .map(Blob::of)
    }

    /// Everything it refers to.
    pub(super) fn blobs(&self) -> impl Iterator<Item = ContentHash> {
        let adapter = self.policy.and_then(|policy| policy.hash());
        self.images()
            .chain(self.latents())
            .map(|blob| blob.hash)
            .chain(adapter)
    }

    /// Others are to try it first.
    pub(super) fn avoid(&mut self, worker: &WorkerId) {
        if !self.avoid.contains(worker) {
            self.avoid.push(worker.clone());
        }
    }

    /// A new stage begins: what was held against it or its workers is forgotten.
    pub(super) fn clear_attempts(&mut self) {
        self.attempts = 0;
        self.avoid.clear();
        self.not_before_ms = 0;
    }
}

/// The hashes of all that a sampling left behind.
pub(super) fn hashes(result: &RolloutResult) -> impl Iterator<Item = ContentHash> {
    let whole: [&BlobRef; 2] = [&result.x0, &result.condition];
    let images = result.sources_png.iter().chain(&result.edits_png);
    let blobs = whole.into_iter().chain(images);
    blobs.map(|blob| blob.hash)
}

/// Whether two samplings of a group have the same bits (A9).
pub(super) fn same_bits(a: &RolloutResult, b: &RolloutResult) -> bool {
    a.version == b.version && hashes(a).eq(hashes(b))
}

/// An iteration that is not committed.
pub(super) struct OpenIteration {
    /// Which one.
    pub iteration: Iteration,
    /// When it was opened.
    pub opened_ms: u64,
    /// What the filter left, once all groups are through.
    pub sealed: Option<Sealed>,
    /// By index, as drawn.
    groups: Vec<Group>,
    /// Groups by state, counted as they change: a status must not go through 100,000 of them.
    counts: GroupCounts,
    /// Those that wait for a rollout worker, for the same reason: every step asks for them.
    queued: BTreeSet<u32>,
    /// Those that wait for a reward worker.
    sampled: BTreeSet<u32>,
}

/// An iteration ready to be trained on.
#[derive(Clone, Debug)]
pub(super) struct Sealed {
    /// When it was sealed.
    pub sealed_ms: u64,
    /// Groups to train on, in order.
    pub kept: Vec<KeptGroup>,
    /// Rows whose pairs met the paper's rule.
    pub solved: Vec<u32>,
    /// Numbers that follow from the groups.
    pub metrics: IterationMetrics,
}

impl OpenIteration {
    /// An iteration without groups.
    pub(super) fn new(iteration: Iteration, now_ms: u64) -> Self {
        Self {
            iteration,
            opened_ms: now_ms,
            sealed: None,
            groups: Vec::new(),
            counts: GroupCounts::default(),
            queued: BTreeSet::new(),
            sampled: BTreeSet::new(),
        }
    }

    /// An iteration as the record has it.
    pub(super) fn restored(record: OpenRecord, now_ms: u64) -> Self {
        let mut open = Self::new(record.iteration, now_ms);
        for group in record.groups {
            open.insert(Group::restored(group));
        }
        open
    }

    /// Adds a drawn group.
    pub(super) fn draw(&mut self, row: u32, round: u32, position: u64) -> DrawnGroup {
        let index = self.groups.len() as u32;
        let group = GroupId {
            iteration: self.iteration,
            index,
        };
        let drawn = DrawnGroup {
            group,
            row,
            round,
            position,
        };
        self.insert(Group::new(drawn));
        drawn
    }

    fn insert(&mut self, group: Group) {
        let (index, state) = (group.drawn.group.index, group.state.clone());
        self.groups.push(group);
        self.counts.total += 1;
        *self.count_of(&state) += 1;
        self.index(index, &state);
    }

    /// Moves a group on.
    pub(super) fn set_state(&mut self, index: u32, state: GroupState) {
        let old = std::mem::replace(&mut self.groups[index as usize].state, state.clone());
        *self.count_of(&old) -= 1;
        *self.count_of(&state) += 1;
        self.queued.remove(&index);
        self.sampled.remove(&index);
        self.index(index, &state);
    }

    fn index(&mut self, index: u32, state: &GroupState) {
        match state {
            GroupState::Queued => self.queued.insert(index),
            GroupState::Sampled => self.sampled.insert(index),
            _ => false,
        };
    }

    fn count_of(&mut self, state: &GroupState) -> &mut u32 {
        match state {
            GroupState::Queued => &mut self.counts.queued,
            GroupState::Sampling(_) => &mut self.counts.sampling,
            GroupState::Sampled => &mut self.counts.sampled,
            GroupState::Scoring(_) => &mut self.counts.scoring,
            GroupState::Scored => &mut self.counts.scored,
            GroupState::Dropped(_) => &mut self.counts.dropped,
        }
    }

    /// Its groups in order.
    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// One of its groups.
    pub(super) fn group(&self, index: u32) -> Option<&Group> {
        self.groups.get(index as usize)
    }

    /// One of its groups.
    pub(super) fn group_mut(&mut self, index: u32) -> Option<&mut Group> {
        self.groups.get_mut(index as usize)
    }

    /// Groups by state.
    pub(super) fn counts(&self) -> GroupCounts {
        self.counts
    }

    /// Groups that wait for a rollout worker.
    pub(super) fn queued(&self) -> impl Iterator<Item = &Group> {
        self.queued
            .iter()
            .map(|index| &self.groups[*index as usize])
    }

    /// Groups that wait for a reward worker.
    pub(super) fn sampled(&self) -> impl Iterator<Item = &Group> {
        self.sampled
            .iter()
            .map(|index| &self.groups[*index as usize])
    }

    /// Whether every group is scored or dropped.
    pub(super) fn is_collected(&self) -> bool {
        self.counts.scored + self.counts.dropped == self.counts.total
    }

    /// Refill rounds so far.
    pub(super) fn rounds(&self) -> u32 {
        self.groups
            .iter()
            .map(|group| group.drawn.round)
            .max()
            .unwrap_or(0)
    }
}
