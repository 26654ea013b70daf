//! Who trains together: the membership of the collective.

use retouch_proto::{Epoch, Generation, WorkerId};

/// A member of the collective.
pub type Member = (WorkerId, Generation);

/// What to do about the collective.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// These train, in rank order.
    Go(Vec<Member>),
    /// Ranks are missing; wait for them until this time.
    Wait(u64),
    /// Nobody is there.
    Nobody,
}

/// What the plan depends on.
pub struct Candidates {
    /// Learners that are ready, by name.
    pub ready: Vec<Member>,
    /// Ranks that the run asks for.
    pub ranks: usize,
    /// What the world size must divide (A9).
    pub gradient_shards: usize,
    /// Since when ranks are missing.
    pub short_since_ms: u64,
    /// How long they are waited for.
    pub grace_ms: u64,
}

/// All ranks if they are there; after the grace, the most that can share the gradient shards.
pub fn plan(candidates: Candidates, now_ms: u64) -> Plan {
    let Candidates {
        mut ready,
        ranks,
        gradient_shards,
        short_since_ms,
        grace_ms,
    } = candidates;
    if ready.len() >= ranks {
        ready.truncate(ranks);
        return Plan::Go(ready);
    }
    let until_ms = short_since_ms + grace_ms;
    if now_ms < until_ms {
        return Plan::Wait(until_ms);
    }
    let world = (1..=ready.len())
        .rev()
        .find(|world| gradient_shards % world == 0);
    ready.truncate(world.unwrap_or(0));
    if ready.is_empty() {
        Plan::Nobody
    } else {
        Plan::Go(ready)
    }
}

/// The present collective: one epoch per membership.
pub struct Collective {
    next: u64,
    current: Option<(Epoch, Vec<Member>)>,
}

impl Collective {
    /// Numbers epochs from the coordinator's incarnation.
    pub fn new(incarnation: u32) -> Self {
        Self {
            next: u64::from(incarnation) << 32,
            current: None,
        }
    }

    /// The epoch of these members: the present one if it is theirs, else a new one.
    pub fn epoch(&mut self, members: &[Member]) -> Epoch {
        if let Some((epoch, current)) = &self.current
            && current == members
        {
            return *epoch;
        }
        self.next += 1;
        self.current = Some((Epoch(self.next), members.to_vec()));
        Epoch(self.next)
    }

    /// Ends the present epoch: something went wrong in it, and nobody may meet its remains.
    pub fn dissolve(&mut self) {
        self.current = None;
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
    fn missing_ranks_are_waited_for_then_the_world_shrinks_to_a_divisor() {
        assert_eq!(planned(3, 149), Plan::Wait(150));
        assert_eq!(planned(3, 150), Plan::Go(members(2)));
        assert_eq!(planned(1, 150), Plan::Go(members(1)));
        assert_eq!(planned(0, 150), Plan::Nobody);
    }

    #[test]
    fn an_epoch_lasts_as_long_as_its_membership() {
        let mut collective = Collective::new(1);
        let first = collective.epoch(&members(2));
        assert_eq!(collective.epoch(&members(2)), first);
        let second = collective.epoch(&members(1));
        assert_ne!(second, first);
        collective.dissolve();
        assert!(collective.epoch(&members(1)) > second);
    }
}
