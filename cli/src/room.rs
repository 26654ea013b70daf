//! Whether a device's memory holds what is to run on it: plans of `model check` against what the driver says is there.

use std::{fmt::Write, path::Path};

use retouch_learner::workload::workload;
use retouch_models::{
    device::cards::{self, Card},
    inspect::{self, estimate, inspect},
};
use retouch_proto::{RunConfig, config::DeviceName, worker::Role};
use retouch_worker::BoxError;

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

/// Refuses a role that alone is too large for its device; whether others are there too is known to whoever starts them.
///
/// # Errors
/// If the device is unknown or is not there, a model can't be read, or it does not fit.
pub(crate) fn check_role(config: &RunConfig, role: Role, device: &str) -> Result<(), BoxError> {
    let device: DeviceName = device.parse()?;
    check_together(config, &[role], device)?;
    Ok(())
}

/// Refuses roles that are too large for the device which they share in one process, where rollout worker and learner have
/// one transformer between them.
///
/// # Errors
/// As [`check_role`].
pub(crate) fn check_together(
    config: &RunConfig,
    roles: &[Role],
    device: DeviceName,
) -> Result<(), UsageError> {
    if device.card().is_none() {
        return Ok(());
    }
    let cards =
        cards::cards().map_err(|error| UsageError(format!("device \"{device}\": {error}")))?;
    // One that is not there is refused where it is opened.
    let Some(card) = card_of(device, &cards) else {
        return Ok(());
    };
    let needs = roles.iter().map(|role| {
        Ok(Need {
            who: format!("{role} worker"),
            role: *role,
            bytes: planned_bytes(config, *role, device)?,
        })
    });
    let needs = needs.collect::<Result<Vec<_>, UsageError>>()?;
    check(card, &sharing_a_transformer(needs))
}

/// Of rollout worker and learner the larger one: they take turns with one base model.
fn sharing_a_transformer(mut needs: Vec<Need>) -> Vec<Need> {
    let with_editor = needs.iter().filter(|need| need.role != Role::Reward);
    let largest = with_editor
        .max_by_key(|need| need.bytes)
        .map(|need| need.role);
    needs.retain(|need| need.role == Role::Reward || Some(need.role) == largest);
    needs
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
    fn roles_of_one_process_share_the_transformer_and_not_the_judge() {
        let needs = vec![
            need("rollout worker", Role::Rollout, 37),
            need("learner worker", Role::Learner, 31),
            need("reward worker", Role::Reward, 20),
        ];
        let together = sharing_a_transformer(needs);
        let gib: Vec<u64> = together.iter().map(|need| need.bytes / GIB).collect();
        assert_eq!(gib, [37, 20]);
    }

    #[test]
    fn the_cpu_is_no_card() {
        assert_eq!(card_of(DeviceName::Cpu, &[card()]), None);
        assert_eq!(card_of(DeviceName::Cuda(0), &[card()]), None);
        assert_eq!(card_of(DeviceName::Cuda(1), &[card()]), Some(&card()));
    }
}
