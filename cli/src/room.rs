//! Whether a device's memory holds what is to run on it: plans of `model check` against what the driver says is there.

use std::{fmt::Write, path::Path};

use retouch_learner::workload::workload;
use retouch_models::{
    device::cards::Card,
    inspect::{self, estimate, inspect},
};
use retouch_proto::{RunConfig, config::DeviceName, worker::Role};

use crate::{exit::UsageError, show::size};

/// What one process would take of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// The process, or the roles in it.
    pub(crate) who: String,
    pub(crate) role: Role,
    pub(crate) bytes: u64,
}

/// The plan of a worker of this role on this device; a judge's for all of the run's judges.
///
/// # Errors
/// If a model's folder can't be read.
pub(crate) fn planned_bytes(
    config: &RunConfig,
    role: Role,
    device: DeviceName,
) -> Result<u64, UsageError> {
    let planned = match role {
        Role::Rollout => inspect::Role::RolloutWorker,
        Role::Reward => inspect::Role::RewardWorker,
        Role::Learner => inspect::Role::Learner,
    };
    let mut workload = workload(config, planned);
    workload.device = device;
    let judges = || config.reward.terms.iter().map(|term| term.path.as_str());
    let folders: Vec<&str> = match role {
        Role::Reward => judges().collect(),
        Role::Rollout | Role::Learner => vec![&config.model.path],
    };
    let bytes = folders.into_iter().map(|folder| {
        let inspection = inspect(Path::new(folder))?;
        Ok(estimate(&inspection, planned, &workload)?.bytes)
    });
    bytes.sum()
}

/// The card that a device is.
pub(crate) fn card_of(device: DeviceName, cards: &[Card]) -> Option<&Card> {
    let index = device.card()?;
    cards.iter().find(|card| card.index == index)
}

/// Refuses what can't fit on a card together.
///
/// # Errors
/// If the processes need more than all of the card's memory.
pub(crate) fn check(card: &Card, needs: &[Need]) -> Result<(), UsageError> {
    let needed: u64 = needs.iter().map(|need| need.bytes).sum();
    if needed <= card.total_bytes {
        return Ok(());
    }
    let mut text = format!(
        "cuda:{} ({}) is too small: {} needed, {} there",
        card.index,
        card.name,
        size(needed),
        size(card.total_bytes)
    );
    for need in needs {
        let _ = write!(text, "\n  {:>10}  {}", size(need.bytes), need.who);
    }
    if needs.len() > 1 {
        text += "\nput fewer of them on a card: give model.device, reward.device and learner.device cards of their own, \
                 as \"cuda:N\", lists, or \"cuda:*\" for all";
    }
    for role in Role::ALL
        .into_iter()
        .filter(|role| needs.iter().any(|need| need.role == *role))
    {
        let _ = write!(text, "\na {role} worker needs less with {}", smaller(role));
    }
    text += "\n`retouch model check FOLDER --run RUN_FILE` says what the memory is for";
    Err(UsageError(text))
}

/// What takes less of a card.
fn smaller(role: Role) -> &'static str {
    match role {
        Role::Rollout => {
            "model.dtype = \"bf16\", or a smaller model.height, model.width or rollout.group_size"
        }
        Role::Reward => "reward.dtype = \"bf16\", a smaller judge, or a smaller rollout.group_size",
        Role::Learner => {
            "model.dtype = \"bf16\", learner.activation_checkpointing = \"block\", or a smaller learner.micro_batch_size"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn card() -> Card {
        Card {
            index: 1,
            name: "NVIDIA H100 80GB HBM3".to_owned(),
            total_bytes: 79 * GIB,
            compute_capability: [9, 0],
            uuid: String::new(),
        }
    }

    fn need(who: &str, role: Role, gib: u64) -> Need {
        let (who, bytes) = (who.to_owned(), gib * GIB);
        Need { who, role, bytes }
    }

    #[test]
    fn what_fits_together_is_let_be() {
        let needs = [
            need("learner-0", Role::Learner, 30),
            need("rollout-worker-0", Role::Rollout, 49),
        ];
        assert!(check(&card(), &needs).is_ok());
    }

    #[test]
    fn what_does_not_is_refused_by_card_and_process_with_what_would_help() {
        let needs = [
            need("learner-0", Role::Learner, 31),
            need("reward-worker-0", Role::Reward, 62),
        ];
        let text = check(&card(), &needs).unwrap_err().to_string();
        for part in [
            "cuda:1 (NVIDIA H100 80GB HBM3) is too small: 93.0 GiB needed, 79.0 GiB there",
            "31.0 GiB  learner-0",
            "62.0 GiB  reward-worker-0",
            "put fewer of them on a card",
            "a learner worker needs less with",
            "reward.dtype",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("rollout worker"), "{text}");
        let alone = check(&card(), &[need("reward-worker-0", Role::Reward, 80)]);
        let text = alone.unwrap_err().to_string();
        assert!(!text.contains("put fewer"), "{text}");
    }

    #[test]
    fn the_cpu_is_no_card() {
        assert_eq!(card_of(DeviceName::Cpu, &[card()]), None);
        assert_eq!(card_of(DeviceName::Cuda(0), &[card()]), None);
        assert_eq!(card_of(DeviceName::Cuda(1), &[card()]), Some(&card()));
    }
}
