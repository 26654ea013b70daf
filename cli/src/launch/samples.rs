//! Pictures of held-out pairs while a run goes on: a process beside it, whenever an adapter is exported.
//!
//! It computes when nobody else wants the processor, on a card that the run's own processes leave room on; where there is
//! none, the pictures are drawn once the training is over. Its failures are told and change nothing.

use std::{fs::OpenOptions, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use retouch_models::device::cards::{self, Card};
use retouch_proto::{Iteration, RunConfig, RunFolder, config::DeviceName, worker::Role};
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

use super::{placement, progress::Lines, supervisor::Pids};
use crate::{
    room,
    samples::{self, DRAW_MAX},
};

const LOOK_EVERY: Duration = Duration::from_secs(2);
const NAME: &str = "samples";

/// Draws for ever what is due; the caller drops the future to stop it.
pub(super) async fn watch(config: &RunConfig, folder: &RunFolder, pids: Pids, lines: Lines) {
    let Some(device) = device(config) else {
        return std::future::pending().await;
    };
    // What failed is tried again with the next adapter, not before.
    let (mut tried, mut said) = (Iteration(0), String::new());
    loop {
        sleep(LOOK_EVERY).await;
        let newest = newest_due(config, folder);
        if newest <= tried {
            continue;
        }
        tried = newest;
        if let Err(error) = draw(folder, device, &pids).await {
            let problem = format!("no pictures of held-out pairs were drawn: {error:#}");
            if problem != said {
                lines.say(&problem);
                said = problem;
            }
        }
    }
}

/// A record that can't be read now is read the next time.
fn newest_due(config: &RunConfig, folder: &RunFolder) -> Iteration {
    let due = samples::due(config, folder).unwrap_or_default();
    due.last().map_or(Iteration(0), |(iteration, _)| *iteration)
}

async fn draw(folder: &RunFolder, device: DeviceName, pids: &Pids) -> anyhow::Result<()> {
    let path = folder.logs().join(format!("{NAME}.log"));
    let log = OpenOptions::new().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("can't write {}", path.display()))?;
    let executable = std::env::current_exe().context("can't find our own executable")?;
    let mut child = Command::new(executable)
        .arg(NAME)
        .arg(folder.path())
        .args(["--device", &device.to_string()])
        .args(["--parent", &std::process::id().to_string()])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("its process can't be started")?;
    let present = |pid| {
        pids.lock()
            .unwrap_or_else(|e| e.into_inner())
            .insert(NAME.to_owned(), pid)
    };
    child.id().map(present);
    let ended = timeout(DRAW_MAX, child.wait()).await;
    pids.lock().unwrap_or_else(|e| e.into_inner()).remove(NAME);
    match ended {
        Ok(status) if status.as_ref().is_ok_and(|status| status.success()) => Ok(()),
        Ok(status) => bail!("{}; see {}", status?, path.display()),
        Err(_) => bail!("not done after {DRAW_MAX:?}; see {}", path.display()),
    }
}

/// Where there is room for one more editor beside the run's processes.
fn device(config: &RunConfig) -> Option<DeviceName> {
    if config.samples.every == 0 {
        return None;
    }
    let first = config.model.device.first();
    if first.card().is_none() {
        return Some(first);
    }
    roomiest(config, &cards::cards().ok()?)
}

/// The card with the most room, if it is enough.
fn roomiest(config: &RunConfig, cards: &[Card]) -> Option<DeviceName> {
    let seats = placement::seats(config);
    let room = |card: &Card| {
        let here = seats
            .iter()
            .filter(|seat| seat.device.card() == Some(card.index));
        let planned = here.map(|seat| room::planned_bytes(config, seat.role, seat.device).ok());
        let planned: u64 = planned.sum::<Option<u64>>()?;
        card.total_bytes.checked_sub(planned)
    };
    let rooms = cards
        .iter()
        .filter_map(|card| Some((room(card)?, card.index)));
    let (free, index) = rooms.max_by_key(|(free, index)| (*free, std::cmp::Reverse(*index)))?;
    let device = DeviceName::Cuda(index);
    let needed = room::planned_bytes(config, Role::Rollout, device).ok()?;
    (needed <= free).then_some(device)
}

#[cfg(test)]
mod tests {
    use retouch_proto::config::{Preset, preset};

    use super::{
        super::fixture::{card, small_run},
        *,
    };

    #[test]
    fn the_card_with_the_most_room_is_taken_if_it_is_enough() {
        let mut config = small_run();
        config.model.device = DeviceName::Cuda(0).into();
        config.reward.device = DeviceName::Cuda(1).into();
        config.learner.device = DeviceName::Cuda(1).into();
        let planned = |role, card| {
            let device = DeviceName::Cuda(card);
            room::planned_bytes(&config, role, device).expect("a plan")
        };
        let rollout = planned(Role::Rollout, 0);
        let others = planned(Role::Reward, 1) + planned(Role::Learner, 1);
        let taken = |first, second| roomiest(&config, &[card(0, first), card(1, second)]);
        assert_eq!(taken(2 * rollout, others), Some(DeviceName::Cuda(0)));
        assert_eq!(
            taken(2 * rollout, others + 2 * rollout),
            Some(DeviceName::Cuda(1))
        );
        assert_eq!(taken(2 * rollout - 1, others + rollout - 1), None);
    }

    #[test]
    fn without_cards_it_is_where_rollouts_are_and_off_it_is_nowhere() {
        let mut config = preset(Preset::Tiny);
        assert_eq!(device(&config), Some(DeviceName::Cpu));
        config.samples.every = 0;
        assert_eq!(device(&config), None);
    }
}
