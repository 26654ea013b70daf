//! What tests of the whole coordinator begin with.

use std::fs;
use std::path::PathBuf;

use retouch_coordinator::{Admission, CoordinatorOptions};
use retouch_proto::config::{FilterRule, Preset, preset};
use retouch_proto::worker::{Registration, Role};
use retouch_proto::{BlobAddress, RunConfig, WorkerId};

/// A dataset and a run folder.
pub(crate) struct Folder {
    folder: tempfile::TempDir,
    pub(crate) config: RunConfig,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dataset = folder.path().join("dataset");
        fs::create_dir_all(dataset.join("images")).unwrap();
        fs::write(dataset.join("images/a.png"), "").unwrap();
        let row = |i| {
            format!(
                "{{\"prompt\": \"p{i}\", \"image\": \"images/a.png\", \"requirement\": \"r\"}}\n"
            )
        };
        fs::write(
            dataset.join("train_metadata.jsonl"),
            (0..9).map(row).collect::<String>(),
        )
        .unwrap();
        let mut config = preset(Preset::Tiny);
        config.iterations = 3;
        config.dataset.path = dataset.display().to_string();
        config.rollout.groups_per_iteration = 2;
        config.rollout.group_size = 2;
        config.filter.rule = FilterRule::None;
        config.filter.ban = false;
        config.learner.ranks = 1;
        config.learner.checkpoint_every = 2;
        config.cluster.heartbeat_ms = 2_000;
        config.cluster.report_wait_ms_max = 200;
        Self { folder, config }
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub(crate) fn options(&self) -> CoordinatorOptions {
        let listen = "127.0.0.1:0".parse().unwrap();
        CoordinatorOptions::new(self.config.clone(), self.run_dir(), listen, Admission::Open)
    }
}

/// A worker with room for one task.
pub(crate) fn registration(worker: &str, role: Role) -> Registration {
    Registration {
        worker: WorkerId::new(worker).unwrap(),
        role,
        slots: 1,
        device: "cpu".into(),
        blob_address: BlobAddress::Grpc("127.0.0.1:1".into()),
        collective_address: (role == Role::Learner).then(|| "127.0.0.1:2".parse().unwrap()),
        holds: Vec::new(),
        running: Vec::new(),
    }
}
