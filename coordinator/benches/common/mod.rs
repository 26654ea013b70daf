//! What the benchmarks need: a run that never ends, and the workers in it.

mod outcome;

use retouch_proto::config::{FilterRule, Preset, preset};
use retouch_proto::worker::{Registration, Role};
use retouch_proto::{BlobAddress, RunConfig, WorkerId};

pub(crate) use self::outcome::outcome;

/// A run with this many groups per iteration, and no end in sight.
pub(crate) fn config(groups_per_iteration: u32) -> RunConfig {
    let mut config = preset(Preset::Tiny);
    config.iterations = 10_000_000;
    config.rollout.groups_per_iteration = groups_per_iteration;
    config.rollout.group_size = 12;
    config.filter.rule = FilterRule::None;
    config.filter.ban = false;
    config.learner.ranks = 1;
    config.learner.checkpoint_every = 1_000_000;
    config
}

/// A worker's registration.
pub(crate) fn registration(role: Role, number: usize) -> Registration {
    Registration {
        worker: WorkerId::new(format!("{role}-{number}")).expect("a valid name"),
        role,
        slots: 1,
        device: "cpu".into(),
        blob_address: BlobAddress::Grpc("127.0.0.1:1".into()),
        collective_address: (role == Role::Learner).then(|| ([127, 0, 0, 1], 2).into()),
        holds: Vec::new(),
        running: Vec::new(),
    }
}
