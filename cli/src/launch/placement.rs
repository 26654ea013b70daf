//! Which device each of a run's workers gets, and whether ranks that sum through NCCL have a card each.

use std::collections::BTreeMap;

use retouch_proto::{
    RunConfig,
    config::{CollectiveKind, DeviceName},
    worker::Role,
};

use crate::exit::UsageError;

/// A worker and its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) role: Role,
    /// Among the workers of its role.
    pub(super) index: u32,
    pub(super) device: DeviceName,
}

impl Seat {
    /// The worker's name, and that of its log: `learner-0`.
    pub(super) fn name(self) -> String {
        format!("{}-{}", self.role.as_str(), self.index)
    }
}

/// The workers that the run file asks for, each on that device of its role's which has the fewest so far.
///
/// Learners choose first: most of an iteration is theirs, and through NCCL no two may meet.
pub(super) fn seats(config: &RunConfig) -> Vec<Seat> {
    let mut taken: BTreeMap<DeviceName, usize> = BTreeMap::new();
    let mut seats: Vec<Seat> = Vec::new();
    for role in [Role::Learner, Role::Reward, Role::Rollout] {
        let (_, devices) = config.devices_of(role);
        for index in 0..workers(config, role) {
            let fewest = devices.names().iter();
            let fewest = fewest.min_by_key(|device| taken.get(device).copied().unwrap_or(0));
            let device = fewest.copied().unwrap_or(devices.first());
            *taken.entry(device).or_default() += 1;
            seats.push(Seat {
                role,
                index,
                device,
            });
        }
    }
    // Started, and shown, in the order of the work.
    seats.sort_by_key(|seat| Role::ALL.iter().position(|role| *role == seat.role));
    seats
}

fn workers(config: &RunConfig, role: Role) -> u32 {
    match role {
        Role::Rollout => config.cluster.rollout_workers,
        Role::Reward => config.cluster.reward_workers,
        Role::Learner => config.learner.ranks,
    }
}

/// NCCL hangs, or fails in words of its own, where two ranks open one card.
///
/// # Errors
/// If there are more ranks than cards for them.
pub(super) fn check_ranks(config: &RunConfig) -> Result<(), UsageError> {
    let learner = &config.learner;
    let cards = learner.device.names().len();
    if learner.collective != CollectiveKind::Nccl || learner.ranks as usize <= cards {
        return Ok(());
    }
    Err(UsageError(format!(
        "learner.ranks: {} ranks that sum through NCCL need a card each, and learner.device = {} has {cards}: name more \
         cards, or \"cuda:*\" for all, or choose fewer ranks or learner.collective = \"tcp\"",
        learner.ranks, learner.device
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(devices: [&str; 3], workers: [u32; 3]) -> RunConfig {
        let mut config = RunConfig::default();
        let cards = |names: &str| {
            let names = names.split(',').map(|name| name.parse().expect("a device"));
            retouch_proto::config::Devices::named(names.collect()).expect("devices")
        };
        [
            config.model.device,
            config.reward.device,
            config.learner.device,
        ] = devices.map(cards);
        config.cluster.rollout_workers = workers[0];
        config.cluster.reward_workers = workers[1];
        config.learner.ranks = workers[2];
        config
    }

    fn seated(config: &RunConfig) -> Vec<String> {
        let seats = seats(config).into_iter();
        seats
            .map(|seat| format!("{} {}", seat.name(), seat.device))
            .collect()
    }

    #[test]
    fn roles_take_their_cards_in_turn_and_the_emptiest_first() {
        let four = "cuda:0,cuda:1,cuda:2,cuda:3";
        let spread = seated(&config([four, four, four], [2, 1, 2]));
        let expected = [
            "rollout-worker-0 cuda:3",
            "rollout-worker-1 cuda:0",
            "reward-worker-0 cuda:2",
            "learner-0 cuda:0",
            "learner-1 cuda:1",
        ];
        assert_eq!(spread, expected);
        let apart = seated(&config(["cuda:1", "cpu", "cuda:0"], [2, 1, 1]));
        let expected = [
            "rollout-worker-0 cuda:1",
            "rollout-worker-1 cuda:1",
            "reward-worker-0 cpu",
            "learner-0 cuda:0",
        ];
        assert_eq!(apart, expected);
    }

    #[test]
    fn ranks_of_nccl_never_share_a_card() {
        let nccl = |device, ranks| {
            let mut config = config([device, device, device], [3, 3, ranks]);
            config.learner.collective = CollectiveKind::Nccl;
            config
        };
        let two = nccl("cuda:4,cuda:5", 2);
        assert!(check_ranks(&two).is_ok());
        let mut learners = seats(&two);
        learners.retain(|seat| seat.role == Role::Learner);
        assert_ne!(learners[0].device, learners[1].device);
        let text = check_ranks(&nccl("cuda:4,cuda:5", 4))
            .unwrap_err()
            .to_string();
        assert!(text.starts_with("learner.ranks: 4 ranks"), "{text}");
        assert!(text.contains("[\"cuda:4\", \"cuda:5\"] has 2"), "{text}");
        let mut tcp = nccl("cuda:0", 4);
        tcp.learner.collective = CollectiveKind::Tcp;
        assert!(check_ranks(&tcp).is_ok(), "over sockets, any card will do");
    }
}
