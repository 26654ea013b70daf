//! Who trains together: the membership of the collective.

use retouch_proto::task::UniqueId;
use retouch_proto::{Epoch, Generation, WorkerId};

/// A member of the collective.
pub(super) type Member = (WorkerId, Generation);

/// What to do about the collective.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// These train, in rank order.
    Go(Vec<Member>),
    /// Ranks are missing; wait for them until this time.
    Wait(u64),
    /// Fewer than may train, however long they are waited for.
    TooFew,
}

/// What the plan depends on.
pub(super) struct Candidates {
    /// Learners that are ready, by name.
    pub ready: Vec<Member>,
    /// Ranks that the run asks for.
    pub ranks: usize,
    /// The fewest that may train.
    pub ranks_min: usize,
    /// The most that may train.
    pub ranks_max: usize,
    /// What the world size must divide (A9).
    pub gradient_shards: usize,
    /// Since when ranks are missing.
    pub short_since_ms: u64,
    /// How long they are waited for.
    pub grace_ms: u64,
}

/// The most that can share the gradient shards: at once if all ranks are there, else after the
/// grace.
pub(super) fn plan(candidates: Candidates, now_ms: u64) -> Plan {
    let Candidates {
        mut ready,
        ranks,
        ranks_min,
        ranks_max,
        gradient_shards,
        short_since_ms,
        grace_ms,
    } = candidates;
    let until_ms = short_since_ms + grace_ms;
    if ready.len() < ranks && now_ms < until_ms {
        return Plan::Wait(until_ms);
    }
    let world = (ranks_min.max(1)..=ready.len().min(ranks_max))
        .rev()
        .find(|world| gradient_shards.is_multiple_of(*world));
    let Some(world) = world else {
        return Plan::TooFew;
    };
    ready.truncate(world);
    Plan::Go(ready)
}

/// The present collective: one epoch per membership.
pub(super) struct Collective {
    next: u64,
    current: Option<(Epoch, Vec<Member>)>,
    unique_id: Option<UniqueId>,
}

impl Collective {
    /// Numbers epochs from the coordinator's incarnation.
    pub(super) fn new(incarnation: u32) -> Self {
        Self {
            next: u64::from(incarnation) << 32,
            current: None,
            unique_id: None,
        }
    }

    /// The epoch of these members: the present one if it is theirs, else a new one.
    pub(super) fn epoch(&mut self, members: &[Member]) -> Epoch {
        if let Some((epoch, current)) = &self.current
            && current == members
        {
            return *epoch;
        }
        self.next += 1;
        self.unique_id = None;
        self.current = Some((Epoch(self.next), members.to_vec()));
        Epoch(self.next)
    }

    /// An epoch of nobody's collective, for who works alone.
    pub(super) fn epoch_apart(&mut self) -> Epoch {
        self.next += 1;
        Epoch(self.next)
    }

    /// Ends the present epoch: something went wrong in it, and nobody may meet its remains.
    pub(super) fn dissolve(&mut self) {
        self.current = None;
        self.unique_id = None;
    }

    /// What rank 0 of the present epoch minted, once it has.
    pub(super) fn unique_id(&self) -> Option<UniqueId> {
        self.unique_id
    }

    /// Notes what rank 0 of the present epoch minted.
    pub(super) fn set_unique_id(&mut self, id: UniqueId) {
        self.unique_id = Some(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: u64) -> Vec<Member> {
        (0..count)
            .map(|rank| {
                (
                    WorkerId::new(format!("learner-{rank}")).unwrap(),
                    Generation(rank),
                )
            })
            .collect()
    }

    fn planned(ready: u64, now_ms: u64) -> Plan {
        let candidates = Candidates {
            ready: members(ready),
            ranks: 4,
            ranks_min: 2,
            ranks_max: 8,
            gradient_shards: 8,
            short_since_ms: 100,
            grace_ms: 50,
        };
        plan(candidates, now_ms)
    }

    #[test]
    fn all_ranks_go_and_standbys_wait() {
        assert_eq!(planned(4, 100), Plan::Go(members(4)));
        assert_eq!(planned(6, 100), Plan::Go(members(4)));
    }

    #[test]
    fn those_who_joined_later_train_too_once_the_shards_can_be_shared() {
        assert_eq!(planned(8, 100), Plan::Go(members(8)));
        assert_eq!(planned(9, 100), Plan::Go(members(8)));
    }

    #[test]
    fn missing_ranks_are_waited_for_then_the_world_shrinks_to_a_divisor() {
        assert_eq!(planned(3, 149), Plan::Wait(150));
        assert_eq!(planned(3, 150), Plan::Go(members(2)));
        assert_eq!(planned(1, 150), Plan::TooFew, "two are the fewest");
        assert_eq!(planned(0, 150), Plan::TooFew);
    }

    #[test]
    fn an_epoch_lasts_as_long_as_its_membership() {
        let mut collective = Collective::new(1);
        let first = collective.epoch(&members(2));
        assert_eq!(collective.epoch(&members(2)), first);
        let second = collective.epoch(&members(1));
        assert_ne!(second, first);
        collective.set_unique_id(UniqueId([7; UniqueId::BYTES]));
        collective.dissolve();
        assert!(collective.epoch(&members(1)) > second);
        assert_eq!(collective.unique_id(), None, "it was of another epoch");
    }
}
