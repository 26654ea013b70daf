//! All iterations that are not committed yet.

use std::collections::BTreeMap;

use retouch_proto::{GroupId, Iteration};

use super::groups::{Group, GroupState, OpenIteration};
use super::record::{KeptGroup, OpenRecord};

/// All open iterations, oldest first: one, or as many more as samples may be stale.
#[derive(Default)]
pub(super) struct OpenIterations(BTreeMap<Iteration, OpenIteration>);

impl OpenIterations {
    /// Those of the record.
    pub(super) fn restored(records: Vec<OpenRecord>, now_ms: u64) -> Self {
        let restored = records
            .into_iter()
            .map(|record| OpenIteration::restored(record, now_ms));
        Self(restored.map(|open| (open.iteration, open)).collect())
    }

    /// Adds one.
    pub(super) fn insert(&mut self, open: OpenIteration) {
        self.0.insert(open.iteration, open);
    }

    /// Takes one out, which is committed.
    pub(super) fn remove(&mut self, iteration: Iteration) -> Option<OpenIteration> {
        self.0.remove(&iteration)
    }

    /// Abandons all of them.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The open iteration of that number.
    pub(super) fn get(&self, iteration: Iteration) -> Option<&OpenIteration> {
        self.0.get(&iteration)
    }

    /// The open iteration of that number.
    pub(super) fn get_mut(&mut self, iteration: Iteration) -> Option<&mut OpenIteration> {
        self.0.get_mut(&iteration)
    }

    /// All of them, oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &OpenIteration> {
        self.0.values()
    }

    /// The newest one.
    pub(super) fn last(&self) -> Option<&OpenIteration> {
        self.iter().next_back()
    }

    /// The groups of all of them.
    pub(super) fn groups(&self) -> impl Iterator<Item = &Group> {
        self.iter().flat_map(|open| open.groups())
    }

    /// Groups that wait for a rollout worker, oldest iteration first.
    pub(super) fn queued(&self) -> impl Iterator<Item = &Group> {
        self.iter().flat_map(|open| open.queued())
    }

    /// Groups that wait for a reward worker, oldest iteration first.
    pub(super) fn sampled(&self) -> impl Iterator<Item = &Group> {
        self.iter().flat_map(|open| open.sampled())
    }

    /// A group.
    pub(super) fn group(&self, id: GroupId) -> Option<&Group> {
        self.get(id.iteration)?.group(id.index)
    }

    /// A group.
    pub(super) fn group_mut(&mut self, id: GroupId) -> Option<&mut Group> {
        self.get_mut(id.iteration)?.group_mut(id.index)
    }

    /// Moves a group on.
    pub(super) fn set_state(&mut self, id: GroupId, state: GroupState) {
        if let Some(open) = self.get_mut(id.iteration) {
            open.set_state(id.index, state);
        }
    }

    /// The groups that an iteration is trained on; none before it is sealed.
    pub(super) fn kept(&self, iteration: Iteration) -> &[KeptGroup] {
        let sealed = self.get(iteration).and_then(|open| open.sealed.as_ref());
        sealed.map_or(&[], |sealed| &sealed.kept)
    }
}
