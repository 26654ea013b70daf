//! Which name belongs to which role: a worker may only speak for itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use retouch_credentials::Principal;
use retouch_credentials::access::Caller;
use retouch_proto::WorkerId;
use retouch_proto::worker::Role;

/// Names that are remembered; more workers than a coordinator can serve (A7).
const NAMES_MAX: usize = 100_000;

/// The roles of all workers that registered with this coordinator; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roster(Arc<Mutex<HashMap<WorkerId, Role>>>);

/// Why a worker may not say what it says.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Impostor {
    /// The certificate is another role's.
    #[error("worker {worker} is a {role} worker, which the client certificate is not for")]
    Role { worker: WorkerId, role: Role },
    /// The name is another role's.
    #[error("the name {worker} belongs to a {role} worker; give another --name")]
    Name { worker: WorkerId, role: Role },
    /// Nobody else can be remembered.
    #[error("{NAMES_MAX} workers have registered, which is the limit")]
    Full,
}

impl Roster {
    /// Notes a registration.
    pub(crate) fn register(
        &self,
        caller: &Caller,
        worker: &WorkerId,
        role: Role,
    ) -> Result<(), Impostor> {
        let worker = worker.clone();
        if !caller.may_be(Principal::Worker(role)) {
            return Err(Impostor::Role { worker, role });
        }
        let mut roles = self.roles();
        match roles.get(&worker) {
            Some(known) if *known == role => Ok(()),
            Some(known) => Err(Impostor::Name {
                worker,
                role: *known,
            }),
            None if roles.len() >= NAMES_MAX => Err(Impostor::Full),
            None => {
                roles.insert(worker, role);
                Ok(())
            }
        }
    }

    /// Checks a report. A name that is not known is told to register, which it must anyway.
    pub(crate) fn check(&self, caller: &Caller, worker: &WorkerId) -> Result<(), Impostor> {
        match self.roles().get(worker) {
            Some(role) if !caller.may_be(Principal::Worker(*role)) => Err(Impostor::Role {
                worker: worker.clone(),
                role: *role,
            }),
            _ => Ok(()),
        }
    }

    fn roles(&self) -> MutexGuard<'_, HashMap<WorkerId, Role>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(role: Role) -> Caller {
        Caller::Known(vec![Principal::Worker(role)])
    }

    fn name(text: &str) -> WorkerId {
        WorkerId::new(text).unwrap()
    }

    #[test]
    fn a_name_keeps_its_role_and_speaks_with_its_certificate() {
        let roster = Roster::default();
        let (learner, rollout) = (caller(Role::Learner), caller(Role::Rollout));
        let worker = name("learner-0");
        let wrong = roster.register(&rollout, &worker, Role::Learner);
        assert!(matches!(wrong, Err(Impostor::Role { .. })));
        for _ in 0..2 {
            assert_eq!(roster.register(&learner, &worker, Role::Learner), Ok(()));
        }
        let taken = roster.register(&rollout, &worker, Role::Rollout);
        assert!(matches!(
            taken,
            Err(Impostor::Name {
                role: Role::Learner,
                ..
            })
        ));
        assert_eq!(roster.check(&learner, &worker), Ok(()));
        let error = roster.check(&rollout, &worker).unwrap_err().to_string();
        assert!(error.contains("learner-0 is a learner worker"), "{error}");
        assert_eq!(roster.check(&rollout, &name("unknown")), Ok(()));
        assert_eq!(roster.check(&Caller::Anyone, &worker), Ok(()));
    }
}
