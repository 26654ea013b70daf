//! The workers that a launch started, by role: whether a run still has somebody for everything.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use retouch_proto::{
    status::{Presence, RunState, RunStatus},
    worker::Role,
};

use crate::control::{ControlClient, Target};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A role may be empty this long: whoever sends a worker away may be about to start another one.
const EMPTY_MAX: Duration = Duration::from_secs(5);
/// The same where workers from elsewhere had the role: their machines may be about to start them again.
const EMPTY_OF_OTHERS_MAX: Duration = Duration::from_secs(600);

/// Names of workers by role.
#[derive(Debug, Default)]
pub(super) struct Crew {
    present: BTreeMap<Role, Vec<String>>,
    sent_away: Vec<String>,
}

impl Crew {
    pub(super) fn join(&mut self, role: Role, name: String) {
        self.present.entry(role).or_default().push(name);
    }

    /// The worker ended as it was told to, and is not started again.
    pub(super) fn leave(&mut self, name: &str) {
        for names in self.present.values_mut() {
            names.retain(|other| other != name);
        }
        self.sent_away.push(name.to_owned());
    }

    /// Waits until a role has nobody left, neither of ours nor from elsewhere, although the run is to go on.
    pub(super) async fn deserted(&self, target: &Target) -> Role {
        let empty = self.present.iter().filter(|(_, names)| names.is_empty());
        let empty: Vec<Role> = empty.map(|(role, _)| *role).collect();
        if empty.is_empty() {
            return std::future::pending().await;
        }
        let mut since = Instant::now();
        loop {
            match self.missing(&empty, target).await {
                Some((role, empty_max)) if since.elapsed() >= empty_max => return role,
                Some(_) => {}
                None => since = Instant::now(),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The first of these roles without which the run waits, and how long it may be so. A coordinator that does not
    /// answer is ending or being started again.
    async fn missing(&self, roles: &[Role], target: &Target) -> Option<(Role, Duration)> {
        let mut control = ControlClient::connect(target).await.ok()?;
        let status = control.status().await.ok()?;
        let mut roles = roles.iter().copied();
        let role = roles.find(|role| is_missing(*role, &status))?;
        Some((role, self.empty_max(role, &status)))
    }

    fn empty_max(&self, role: Role, status: &RunStatus) -> Duration {
        let is_ours = |id: &str| self.sent_away.iter().any(|name| name == id);
        let mut workers = status.workers.iter();
        match workers.any(|worker| worker.role == role && !is_ours(worker.id.as_str())) {
            true => EMPTY_OF_OTHERS_MAX,
            false => EMPTY_MAX,
        }
    }
}

fn is_missing(role: Role, status: &RunStatus) -> bool {
    let goes_on = matches!(status.state, RunState::Running | RunState::Draining);
    // A lost worker may come back, and keeps its role.
    let left = |state| state == Presence::Left;
    let mut workers = status.workers.iter();
    goes_on && !workers.any(|worker| worker.role == role && !left(worker.state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::tests::sample;

    #[test]
    fn a_role_is_missing_when_all_of_it_were_sent_away_and_the_run_is_to_go_on() {
        let mut status = sample();
        assert!(!is_missing(Role::Rollout, &status));
        for worker in &mut status.workers {
            worker.state = Presence::Lost;
        }
        assert!(!is_missing(Role::Rollout, &status), "it may come back");
        for worker in &mut status.workers {
            worker.state = Presence::Left;
        }
        assert!(is_missing(Role::Rollout, &status));
        for state in [RunState::Paused, RunState::Stopping, RunState::Finished] {
            status.state = state;
            assert!(!is_missing(Role::Rollout, &status), "{state}");
        }
    }

    #[test]
    fn workers_from_elsewhere_have_time_to_come_back() {
        let status = sample();
        let mut crew = Crew::default();
        assert_eq!(crew.empty_max(Role::Rollout, &status), EMPTY_OF_OTHERS_MAX);
        for worker in &status.workers {
            crew.leave(worker.id.as_str());
        }
        assert_eq!(crew.empty_max(Role::Rollout, &status), EMPTY_MAX);
    }
}
