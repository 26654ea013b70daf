//! Which owner of a blob is asked next, and when there is no hope left. No IO.

use std::collections::{HashMap, VecDeque};

use retouch_proto::BlobAddress;

/// Owners that are known at a time.
const OWNERS_MAX: usize = 128;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask this owner.
    Ask(BlobAddress),
    /// All were asked. Some only had no time: ask again soon.
    AllBusy,
    /// All were asked and failed, for this many rounds now.
    Failed { rounds: u32 },
    /// Nobody is left to ask.
    Hopeless,
}

/// The owners of one blob from the view of one that wants it.
#[derive(Debug)]
pub(super) struct Search {
    /// Not asked yet in this round.
    ahead: VecDeque<BlobAddress>,
    /// Asked in this round, and worth asking again.
    asked: Vec<BlobAddress>,
    rounds: u32,
    any_busy: bool,
    said: HashMap<BlobAddress, String>,
}

impl Search {
    pub(super) fn new(owners: &[BlobAddress]) -> Self {
        Self {
            ahead: owners.iter().cloned().collect(),
            asked: Vec::new(),
            rounds: 0,
            any_busy: false,
            said: HashMap::new(),
        }
    }

    pub(super) fn next(&mut self) -> Next {
        if let Some(owner) = self.ahead.pop_front() {
            return Next::Ask(owner);
        }
        if self.asked.is_empty() {
            return Next::Hopeless;
        }
        self.ahead = std::mem::take(&mut self.asked).into();
        if std::mem::take(&mut self.any_busy) {
            return Next::AllBusy;
        }
        self.rounds += 1;
        Next::Failed {
            rounds: self.rounds,
        }
    }

    /// The owner has no time, and names others, which are asked next.
    pub(super) fn busy(&mut self, owner: BlobAddress, others: Vec<BlobAddress>) {
        self.any_busy = true;
        for other in others.into_iter().rev() {
            let known = [
                other == owner,
                self.ahead.contains(&other),
                self.asked.contains(&other),
            ];
            let count = self.ahead.len() + self.asked.len();
            if !known.contains(&true) && count < OWNERS_MAX {
                self.ahead.push_front(other);
            }
        }
        self.asked.push(owner);
    }

    /// The owner failed, and may do better in the next round.
    pub(super) fn failed(&mut self, owner: BlobAddress, problem: String) {
        self.said.insert(owner.clone(), problem);
        self.asked.push(owner);
    }

    /// The owner's copy is broken: it is not asked again.
    pub(super) fn broken(&mut self, owner: BlobAddress, problem: String) {
        self.asked.retain(|asked| *asked != owner);
        self.ahead.retain(|ahead| *ahead != owner);
        self.said.insert(owner, problem);
    }

    /// What each owner said last.
    pub(super) fn into_said(self) -> Vec<(BlobAddress, String)> {
        let mut said: Vec<_> = self.said.into_iter().collect();
        said.sort();
        said
    }
}

#[cfg(test)]
mod tests {
    use super::{super::audience::Audience, *};

    fn address(index: usize) -> BlobAddress {
        BlobAddress::Grpc(format!("worker:{index}"))
    }

    fn index(address: &BlobAddress) -> usize {
        let BlobAddress::Grpc(text) = address else {
            unreachable!("all are workers")
        };
        text.rsplit(':').next().unwrap().parse().unwrap()
    }

    #[test]
    fn failing_owners_are_asked_again_and_broken_ones_not() {
        let [a, b] = [address(1), address(2)];
        let mut search = Search::new(&[a.clone(), b.clone()]);
        assert_eq!(search.next(), Next::Ask(a.clone()));
        search.broken(a.clone(), "wrong bytes".into());
        assert_eq!(search.next(), Next::Ask(b.clone()));
        search.failed(b.clone(), "silent".into());
        assert_eq!(search.next(), Next::Failed { rounds: 1 });
        assert_eq!(search.next(), Next::Ask(b.clone()));
        search.broken(b.clone(), "wrong bytes too".into());
        assert_eq!(search.next(), Next::Hopeless);
        let said = search.into_said();
        assert_eq!(
            said,
            [
                (a, "wrong bytes".to_owned()),
                (b, "wrong bytes too".to_owned())
            ]
        );
    }

    #[test]
    fn busy_owners_lead_to_others_and_cost_no_round() {
        let [a, b, c] = [address(1), address(2), address(3)];
        let mut search = Search::new(std::slice::from_ref(&a));
        assert_eq!(search.next(), Next::Ask(a.clone()));
        search.busy(a.clone(), vec![b.clone(), c.clone(), a.clone()]);
        assert_eq!(search.next(), Next::Ask(b.clone()));
        search.failed(b, "not held here".into());
        assert_eq!(search.next(), Next::Ask(c.clone()));
        search.busy(c, vec![]);
        assert_eq!(search.next(), Next::AllBusy);
        assert_eq!(search.next(), Next::Ask(a));
    }

    /// A network in which a transfer takes one round, whatever else goes on. All workers but the
    /// first want the blob at once, and know of nobody but the first.
    fn rounds_until_all_have_it(workers: usize) -> usize {
        let mut audiences: Vec<Audience> = (0..workers).map(|_| Audience::default()).collect();
        let first = [address(0)];
        let mut searches: Vec<Option<Search>> =
            (0..workers).map(|_| Some(Search::new(&first))).collect();
        searches[0] = None;
        let mut rounds = 0;
        while searches.iter().any(Option::is_some) {
            rounds += 1;
            let mut transfers = Vec::new();
            for (caller, search) in searches.iter_mut().enumerate() {
                let Some(search) = search else {
                    continue;
                };
                while let Next::Ask(owner) = search.next() {
                    match audiences[index(&owner)].enter() {
                        Ok(()) => {
                            transfers.push((caller, index(&owner)));
                            search.failed(owner, "it is being transferred".into());
                            break;
                        }
                        Err(others) => search.busy(owner, others),
                    }
                }
            }
            assert!(!transfers.is_empty(), "nothing moves in round {rounds}");
            for (caller, owner) in transfers {
                audiences[owner].leave(Some(address(caller)));
                searches[caller] = None;
            }
        }
        rounds
    }

    #[test]
    fn a_blob_reaches_all_workers_in_a_logarithmic_number_of_rounds() {
        let rounds = [5, 25, 100, 500, 2_500].map(rounds_until_all_have_it);
        println!("rounds for 5, 25, 100, 500, 2500 workers: {rounds:?}");
        // Every owner serves four at a time: in the best case their number grows fivefold a round.
        assert_eq!(rounds[0], 1);
        assert!(rounds[3] <= 7, "{rounds:?}");
        // Five times as many workers cost a constant number of rounds more.
        assert!(
            rounds[3] - rounds[2] <= 3 && rounds[4] - rounds[3] <= 3,
            "{rounds:?}"
        );
    }
}
