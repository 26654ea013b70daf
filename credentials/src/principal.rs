//! Who there is in a run, as certificates name them.

use std::{fmt, str::FromStr};

use retouch_proto::worker::Role;

/// The domain that stands behind every name; `.internal` is reserved for private use.
const DOMAIN: &str = "retouch.internal";
/// The name that all workers share: whoever fetches a blob wants a worker, whatever its role.
const WORKER: &str = "worker";

/// Someone whom a certificate or a token speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Principal {
    /// The process that decides.
    Coordinator,
    /// A worker of one role.
    Worker(Role),
    /// A person who looks at the run and steers it.
    Control,
}

impl Principal {
    /// Everyone.
    pub const ALL: [Self; 5] = [
        Self::Coordinator,
        Self::Worker(Role::Rollout),
        Self::Worker(Role::Reward),
        Self::Worker(Role::Learner),
        Self::Control,
    ];
    /// Those who join with a token: all but the coordinator.
    pub const JOINING: [Self; 4] = [
        Self::Worker(Role::Rollout),
        Self::Worker(Role::Reward),
        Self::Worker(Role::Learner),
        Self::Control,
    ];
    /// The workers.
    pub const WORKERS: [Self; 3] = [
        Self::Worker(Role::Rollout),
        Self::Worker(Role::Reward),
        Self::Worker(Role::Learner),
    ];

    /// `coordinator`, `rollout-worker`, `reward-worker`, `learner` or `control`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Worker(role) => role.as_str(),
            Self::Control => "control",
        }
    }

    /// Its name in run folders of before, and what tokens are derived from ever since.
    pub(crate) fn former_name(self) -> &'static str {
        match self {
            Self::Worker(role) => role.word(),
            Self::Coordinator | Self::Control => self.as_str(),
        }
    }

    /// The DNS names in its certificate, such as `learner.retouch.internal`.
    pub fn dns_names(self) -> Vec<String> {
        let mut names = vec![self.dns_name()];
        if let Self::Worker(_) = self {
            names.push(worker_dns_name());
        }
        names
    }

    /// The name of this principal alone.
    pub fn dns_name(self) -> String {
        format!("{self}.{DOMAIN}")
    }

    /// The principal behind a name; none for other names.
    pub fn of_dns_name(name: &str) -> Option<Self> {
        let first = name.strip_suffix(DOMAIN)?.strip_suffix('.')?;
        first.parse().ok()
    }
}

/// The name under which any worker serves blobs.
pub(crate) fn worker_dns_name() -> String {
    format!("{WORKER}.{DOMAIN}")
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Text that names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of coordinator, rollout-worker, reward-worker, learner, control")]
pub struct InvalidPrincipal(String);

impl FromStr for Principal {
    type Err = InvalidPrincipal;

    fn from_str(text: &str) -> Result<Self, InvalidPrincipal> {
        let is_meant = |known: &Self| [known.as_str(), known.former_name()].contains(&text);
        let known = Self::ALL.into_iter().find(is_meant);
        known.ok_or_else(|| InvalidPrincipal(text.to_owned()))
    }
}

/// Several principals in a sentence.
pub(crate) fn list(principals: &[Principal]) -> String {
    let names: Vec<&str> = principals.iter().map(|one| one.as_str()).collect();
    names.join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for principal in Principal::ALL {
            assert_eq!(principal.as_str().parse(), Ok(principal));
            assert_eq!(principal.former_name().parse(), Ok(principal));
            assert_eq!(
                Principal::of_dns_name(&principal.dns_names()[0]),
                Some(principal)
            );
        }
        let former = Principal::of_dns_name("rollout.retouch.internal");
        assert_eq!(former, Some(Principal::Worker(Role::Rollout)));
        for name in [
            "worker.retouch.internal",
            "learner",
            "learner.example.org",
            "",
        ] {
            assert_eq!(Principal::of_dns_name(name), None, "{name}");
        }
    }
}
