//! Workers that could take a task right now, least loaded first.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use retouch_proto::WorkerId;
use retouch_proto::worker::Role;

/// The free workers of every role.
#[derive(Default)]
pub(super) struct FreeWorkers {
    by_load: BTreeMap<Role, BTreeSet<(u32, WorkerId)>>,
    places: HashMap<WorkerId, (Role, u32)>,
}

impl FreeWorkers {
    /// Notes that a worker is free, with so many tasks running.
    pub(super) fn insert(&mut self, id: &WorkerId, role: Role, running: u32) {
        if self.places.get(id) != Some(&(role, running)) {
            self.remove(id);
            self.places.insert(id.clone(), (role, running));
            self.by_load
                .entry(role)
                .or_default()
                .insert((running, id.clone()));
        }
    }

    /// Notes that a worker is not free.
    pub(super) fn remove(&mut self, id: &WorkerId) {
        if let Some((role, running)) = self.places.remove(id) {
            self.by_load
                .entry(role)
                .or_default()
                .remove(&(running, id.clone()));
        }
    }

    /// How many there are.
    pub(super) fn count(&self, role: Role) -> usize {
        self.by_load.get(&role).map_or(0, BTreeSet::len)
    }

    /// The least loaded ones, at most so many.
    pub(super) fn least_loaded(&self, role: Role, count: usize) -> Vec<WorkerId> {
        let workers = self.by_load.get(&role).into_iter().flatten();
        workers.take(count).map(|(_, id)| id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_come_in_the_order_of_their_load() {
        let mut free = FreeWorkers::default();
        let [a, b, c] = ["a", "b", "c"].map(|name| WorkerId::new(name).unwrap());
        free.insert(&a, Role::Rollout, 2);
        free.insert(&b, Role::Rollout, 1);
        free.insert(&c, Role::Reward, 0);
        assert_eq!(free.least_loaded(Role::Rollout, 9), [b.clone(), a.clone()]);
        assert_eq!(
            (free.count(Role::Rollout), free.count(Role::Learner)),
            (2, 0)
        );
        free.insert(&a, Role::Rollout, 0);
        assert_eq!(
            free.least_loaded(Role::Rollout, 1),
            std::slice::from_ref(&a)
        );
        free.insert(&b, Role::Reward, 1);
        assert_eq!(
            free.least_loaded(Role::Rollout, 9),
            std::slice::from_ref(&a),
            "a worker has one role at a time"
        );
        free.remove(&a);
        assert_eq!(free.least_loaded(Role::Rollout, 9), []);
        assert_eq!(free.least_loaded(Role::Reward, 9), [c, b]);
    }
}
