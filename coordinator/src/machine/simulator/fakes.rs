//! Fake workers: they follow the protocol as real ones do, and compute hashes instead of tensors.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use retouch_proto::task::*;
use retouch_proto::worker::{Registration, Report, Role, RunningTask, WorkerState};
use retouch_proto::{BlobAddress, BlobRef, ContentHash, Generation, GroupId, LeaseId, WorkerId};

/// A report that an answer is waited for, and what it carried.
pub(in crate::machine) struct Outstanding {
    pub(in crate::machine) sequence: u64,
    results: Vec<LeaseId>,
    added: BTreeSet<ContentHash>,
    dropped: BTreeSet<ContentHash>,
}

/// A fake process.
pub(in crate::machine) struct Fake {
    pub(in crate::machine) id: WorkerId,
    pub(in crate::machine) role: Role,
    pub(in crate::machine) slots: u32,
    /// Counts its lives; what was meant for an older one is lost.
    pub(in crate::machine) life: u64,
    pub(in crate::machine) alive: bool,
    /// Computes other bits than most.
    pub(in crate::machine) odd_device: bool,
    /// Finishes what it has and takes no more.
    pub(in crate::machine) leaving: bool,
    /// Where its present life serves blobs.
    pub(in crate::machine) address: BlobAddress,
    pub(in crate::machine) generation: Option<Generation>,
    pub(in crate::machine) sequence: u64,
    pub(in crate::machine) running: BTreeMap<LeaseId, Task>,
    /// Results that no answered report has carried.
    pub(in crate::machine) results: Vec<TaskResult>,
    pub(in crate::machine) blobs: HashSet<ContentHash>,
    pub(in crate::machine) added: BTreeSet<ContentHash>,
    pub(in crate::machine) dropped: BTreeSet<ContentHash>,
    /// The report that an answer is waited for, with what it carried.
    pub(in crate::machine) outstanding: Option<Outstanding>,
}

impl Fake {
    pub(in crate::machine) fn new(role: Role, number: usize, slots: u32) -> Self {
        let id = WorkerId::new(format!("{role}-{number}")).expect("a valid name");
        Self {
            address: address_of(&id, 0),
            id,
            role,
            slots,
            life: 0,
            alive: false,
            odd_device: false,
            leaving: false,
            generation: None,
            sequence: 0,
            running: BTreeMap::new(),
            results: Vec::new(),
            blobs: HashSet::new(),
            added: BTreeSet::new(),
            dropped: BTreeSet::new(),
            outstanding: None,
        }
    }

    /// A new process: nothing is left of the old one.
    pub(in crate::machine) fn restart(&mut self) {
        let fresh = Self::new(self.role, 0, self.slots);
        let (id, life, odd_device) = (self.id.clone(), self.life + 1, self.odd_device);
        *self = Self {
            address: address_of(&id, life),
            id,
            life,
            odd_device,
            alive: true,
            ..fresh
        };
    }

    pub(in crate::machine) fn registration(&self) -> Registration {
        let running = self.running.iter().map(|(lease, task)| RunningTask {
            lease: *lease,
            kind: self.role,
            group: group_of(task),
        });
        let learner = self.role == Role::Learner;
        Registration {
            worker: self.id.clone(),
            role: self.role,
            slots: self.slots,
            device: "fake".into(),
            blob_address: self.address.clone(),
            collective_address: learner.then(|| "127.0.0.1:1".parse().expect("an address")),
            holds: self.blobs.iter().copied().collect(),
            running: running.collect(),
        }
    }

    pub(in crate::machine) fn report(&mut self) -> Option<Report> {
        let generation = self.generation?;
        self.sequence += 1;
        self.outstanding = Some(Outstanding {
            sequence: self.sequence,
            results: self.results.iter().map(|result| result.lease).collect(),
            added: self.added.clone(),
            dropped: self.dropped.clone(),
        });
        Some(Report {
            worker: self.id.clone(),
            generation,
            sequence: self.sequence,
            state: match self.leaving {
                true => WorkerState::Leaving,
                false => WorkerState::Ready,
            },
            slots_free: match self.leaving {
                true => 0,
                false => self.slots - self.running.len() as u32,
            },
            running: self.running.keys().copied().collect(),
            results: self.results.clone(),
            blobs_added: self.added.iter().copied().collect(),
            blobs_dropped: self.dropped.iter().copied().collect(),
        })
    }

    /// An answered report need not be repeated.
    pub(in crate::machine) fn acknowledge(&mut self, sequence: u64) -> bool {
        let Some(carried) = self
            .outstanding
            .take_if(|waited| waited.sequence == sequence)
        else {
            return false;
        };
        self.results
            .retain(|result| !carried.results.contains(&result.lease));
        self.added.retain(|hash| !carried.added.contains(hash));
        self.dropped.retain(|hash| !carried.dropped.contains(hash));
        true
    }

    pub(in crate::machine) fn gain(&mut self, hash: ContentHash) {
        self.dropped.remove(&hash);
        if self.blobs.insert(hash) {
            self.added.insert(hash);
        }
    }

    pub(in crate::machine) fn lose(&mut self, hash: ContentHash) {
        if self.blobs.remove(&hash) {
            self.added.remove(&hash);
            self.dropped.insert(hash);
        }
    }

    /// Does a rollout.
    pub(in crate::machine) fn sample(&mut self, task: &RolloutTask) -> RolloutResult {
        let version = task.version.as_ref().map(|version| version.hash);
        let device = if self.odd_device { "odd" } else { "even" };
        let named = |what: &str| {
            let policy = version.unwrap_or_else(first_version);
            hash_of(&[
                what,
                &task.group.to_string(),
                &task.prompt,
                &policy.to_string(),
                device,
            ])
        };
        let result = RolloutResult {
            group: task.group,
            version,
            x0: blob(named("x0")),
            condition: blob(named("condition")),
            sources_png: vec![blob(named("source"))],
            edits_png: (0..task.group_size)
                .map(|k| blob(named(&format!("edit {k}"))))
                .collect(),
            timings: RolloutTimings::default(),
        };
        let whole = [&result.x0, &result.condition].into_iter();
        let images = result.sources_png.iter().chain(&result.edits_png);
        self.blobs.extend(whole.chain(images).map(|blob| blob.hash));
        result
    }
}

fn address_of(id: &WorkerId, life: u64) -> BlobAddress {
    BlobAddress::Grpc(format!("{id}:{}", life % 60_000 + 1))
}

pub(in crate::machine) fn group_of(task: &Task) -> Option<GroupId> {
    match task {
        Task::Rollout(task) => Some(task.group),
        Task::Score(task) => Some(task.group),
        Task::Train(_) | Task::Mint(_) => None,
    }
}

/// What a task reads.
pub(in crate::machine) fn inputs(task: &Task) -> Vec<BlobRef> {
    match task {
        Task::Rollout(task) => task.version.iter().cloned().collect(),
        Task::Score(task) => {
            let images = task.sources_png.iter().chain(&task.edits_png);
            images.cloned().collect()
        }
        Task::Train(task) => {
            let latents = task
                .groups
                .iter()
                .flat_map(|group| [&group.x0, &group.condition]);
            task.state
                .iter()
                .chain(latents)
                .chain(&task.versions)
                .chain(task.earlier.iter().map(|policy| &policy.adapter))
                .cloned()
                .collect()
        }
        Task::Mint(_) => Vec::new(),
    }
}

pub(in crate::machine) fn mint(task: &MintTask) -> MintResult {
    MintResult {
        epoch: task.epoch,
        unique_id: UniqueId([task.epoch.0 as u8; UniqueId::BYTES]),
    }
}

/// The judge: a reward that depends on the image alone; some groups are all alike.
pub(in crate::machine) fn reward_of(edit: ContentHash, prompt: &str) -> f64 {
    match ContentHash::of(prompt.as_bytes()).0[0] % 4 {
        0 => 0.95,
        1 => 0.5,
        _ => f64::from(edit.0[0]) / 255.0,
    }
}

pub(in crate::machine) fn score(task: &ScoreTask) -> ScoreResult {
    let edits: Vec<ContentHash> = task.edits_png.iter().map(|edit| edit.hash).collect();
    let score = |edit: &ContentHash| SampleScore {
        reward: reward_of(*edit, &task.prompt),
        terms: Vec::new(),
    };
    let scores = edits.iter().map(score).collect();
    ScoreResult {
        group: task.group,
        edits,
        scores,
        unscored: Vec::new(),
        scoring_s: 0.0,
    }
}

/// The learner: the state is the hash of everything that went into it.
pub(in crate::machine) fn train(task: &TrainTask) -> TrainResult {
    let before = task.state.as_ref().map(|state| state.hash);
    let groups = task.groups.iter();
    let state = state_after(
        before,
        groups.map(|group| {
            (
                group.group,
                group.x0.hash,
                group.version,
                &group.advantages[..],
            )
        }),
    );
    TrainResult {
        iteration: task.iteration,
        epoch: task.collective.epoch,
        state: blob(state),
        version: blob(version_of(state)),
        ema_adapter: task
            .checkpoint
            .then(|| hash_of(&["ema", &state.to_string()])),
        metrics: TrainMetrics::default(),
    }
}

/// What a step learns from a group: its name, latents, version and advantages.
pub(in crate::machine) type Lesson<'a> = (GroupId, ContentHash, Option<ContentHash>, &'a [f64]);

/// The state after a step: the hash of everything that went into it.
pub(in crate::machine) fn state_after<'a>(
    before: Option<ContentHash>,
    lessons: impl Iterator<Item = Lesson<'a>>,
) -> ContentHash {
    let before = before.unwrap_or_else(first_state);
    lessons.fold(before, |state, (group, x0, version, advantages)| {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&state.0);
        bytes.extend_from_slice(&group.iteration.0.to_le_bytes());
        bytes.extend_from_slice(&group.index.to_le_bytes());
        bytes.extend_from_slice(&x0.0);
        bytes.extend_from_slice(&version.unwrap_or_else(first_version).0);
        advantages
            .iter()
            .for_each(|advantage| bytes.extend_from_slice(&advantage.to_bits().to_le_bytes()));
        ContentHash::of(&bytes)
    })
}

fn first_state() -> ContentHash {
    hash_of(&["first state"])
}

fn first_version() -> ContentHash {
    version_of(first_state())
}

fn version_of(state: ContentHash) -> ContentHash {
    hash_of(&["version", &state.to_string()])
}

pub(in crate::machine) fn hash_of(parts: &[&str]) -> ContentHash {
    ContentHash::of(parts.join("|").as_bytes())
}

fn blob(hash: ContentHash) -> BlobRef {
    BlobRef {
        hash,
        size_bytes: 1,
        owners: Vec::new(),
    }
}
