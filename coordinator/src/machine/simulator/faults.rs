//! What goes wrong in a run, when, and how often.

use super::random::Random;

/// Every run is struck at least this often.
pub(super) const STRIKES_MIN: usize = 20;
/// The first strikes come within this time, before any run can be over.
const EARLY_MS: u64 = 3_600;

/// Something that goes wrong at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Strike {
    /// A worker is killed and started again later, as a new generation.
    WorkerCrash,
    /// A learner is killed in the middle of this or the next step, and may stay away.
    LearnerVanish,
    /// All learners are killed at once, and with them all that only they had.
    LearnersCrash,
    /// A worker is stopped for a while (SIGSTOP), then goes on as if nothing had been.
    WorkerPause,
    /// A worker's tasks take twenty times as long for a while.
    WorkerSlow,
    /// A worker is told to end: it finishes what it has and leaves; it may come back later.
    WorkerDrain,
    /// A worker that was not there joins.
    WorkerJoin,
    /// Tasks that a worker begins for a while never end (a judge that times out, say).
    TaskHang,
    /// A worker's bounded store drops a blob.
    BlobLoss,
    /// Some workers and the coordinator don't hear each other for a while.
    Partition,
    /// Some workers can't fetch from the others for a while.
    PeerPartition,
    /// The coordinator is killed.
    CoordinatorCrash,
    /// The coordinator is killed just before or just after its next write to the record.
    CrashAtWrite,
    /// The coordinator is stopped for a while.
    CoordinatorPause,
    /// The coordinator is told to end, and another is started.
    CoordinatorSuspend,
    /// Nothing can be written to the run folder for a while.
    DiskFull,
    /// The coordinator's clock leaps, forwards or backwards.
    ClockJump,
    /// Somebody pauses the run, and resumes it.
    PersonPause,
    /// Somebody drains the run, and starts it again.
    PersonDrain,
    /// Somebody stops the run, and starts it again.
    PersonStop,
    /// Somebody has one worker leave, which is started again later.
    PersonDrainsWorker,
    /// Somebody has one worker end at once and start again.
    PersonRestartsWorker,
    /// Somebody asks for a checkpoint now.
    PersonCheckpoint,
}

impl Strike {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::WorkerCrash,
        Self::LearnerVanish,
        Self::LearnersCrash,
        Self::WorkerPause,
        Self::WorkerSlow,
        Self::WorkerDrain,
        Self::WorkerJoin,
        Self::TaskHang,
        Self::BlobLoss,
        Self::Partition,
        Self::PeerPartition,
        Self::CoordinatorCrash,
        Self::CrashAtWrite,
        Self::CoordinatorPause,
        Self::CoordinatorSuspend,
        Self::DiskFull,
        Self::ClockJump,
        Self::PersonPause,
        Self::PersonDrain,
        Self::PersonStop,
        Self::PersonDrainsWorker,
        Self::PersonRestartsWorker,
        Self::PersonCheckpoint,
    ];

    /// For the table of totals.
    pub fn name(self) -> &'static str {
        match self {
            Self::WorkerCrash => "workers killed",
            Self::LearnerVanish => "learners gone in a step",
            Self::LearnersCrash => "all learners killed at once",
            Self::WorkerPause => "workers stopped for a while",
            Self::WorkerSlow => "workers slowed down",
            Self::WorkerDrain => "workers told to end",
            Self::WorkerJoin => "workers joined",
            Self::TaskHang => "workers whose tasks hang",
            Self::BlobLoss => "blobs lost",
            Self::Partition => "partitions",
            Self::PeerPartition => "partitions between workers",
            Self::CoordinatorCrash => "coordinators killed",
            Self::CrashAtWrite => "coordinators killed at a write",
            Self::CoordinatorPause => "coordinators stopped for a while",
            Self::CoordinatorSuspend => "coordinators told to end",
            Self::DiskFull => "disks full",
            Self::ClockJump => "clock jumps",
            Self::PersonPause => "runs paused",
            Self::PersonDrain => "runs drained",
            Self::PersonStop => "runs stopped",
            Self::PersonDrainsWorker => "workers told to leave",
            Self::PersonRestartsWorker => "workers told to start again",
            Self::PersonCheckpoint => "checkpoints asked for",
        }
    }

    /// Whether it can make a task fail, and so, if it is bad enough, a group or the run.
    fn can_fail_tasks(self) -> bool {
        matches!(
            self,
            Self::WorkerSlow | Self::TaskHang | Self::PeerPartition | Self::ClockJump
        )
    }
}

/// All that goes wrong in one run.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// When something strikes, from the start of the run.
    pub(super) strikes_ms: Vec<u64>,
    /// What can strike.
    pub(super) kinds: Vec<Strike>,
    /// After this time no message and no task goes wrong by itself.
    pub(super) until_ms: u64,
    /// Per message.
    pub(super) lost: f64,
    /// Per message.
    pub(super) doubled: f64,
    /// Longest delay of a message.
    pub(super) latency_ms_max: u64,
    /// Per task.
    pub(super) task_fails: f64,
    /// Whether one worker computes other bits than the others.
    pub(super) other_devices: bool,
}

impl Faults {
    /// Nothing goes wrong.
    pub(super) fn none() -> Self {
        Self {
            latency_ms_max: 5,
            ..Self::default()
        }
    }

    /// Some things go wrong, different ones for each seed.
    pub(super) fn some(random: &mut Random) -> Self {
        let kinds: Vec<Strike> = Strike::ALL
            .into_iter()
            .filter(|_| random.chance(0.5))
            .collect();
        let strikes_ms = strikes(random);
        let last_ms = strikes_ms.last().copied().unwrap_or(0);
        let mut rarely = |probability: f64| if random.chance(0.5) { probability } else { 0.0 };
        let (lost, doubled, task_fails) = (rarely(0.05), rarely(0.05), rarely(0.02));
        Self {
            strikes_ms,
            kinds,
            until_ms: last_ms + 1,
            lost,
            doubled,
            latency_ms_max: random.pick(&[20, 300, 1_500]).unwrap_or(20),
            task_fails,
            other_devices: random.chance(0.05),
        }
    }

    /// Only what cannot change the result, however bad.
    pub(super) fn harmless(random: &mut Random) -> Self {
        let mut faults = Self::some(random);
        faults.kinds.retain(|kind| !kind.can_fail_tasks());
        faults.task_fails = 0.0;
        faults.other_devices = false;
        faults
    }

    /// Whether tasks may fail so often that a group or the run is given up.
    pub(super) fn can_fail_tasks(&self) -> bool {
        self.task_fails > 0.0 || self.kinds.iter().any(|kind| kind.can_fail_tasks())
    }
}

/// Enough of them early, the others in a spread that differs by run.
fn strikes(random: &mut Random) -> Vec<u64> {
    let spread_ms = random.pick(&[1_000, 6_000, 20_000]).unwrap_or(1_000);
    let more = random.within(0..24);
    let early = (0..STRIKES_MIN).map(|_| EARLY_MS);
    let late = (0..more).map(|_| EARLY_MS + spread_ms);
    let mut strikes: Vec<u64> = early
        .chain(late)
        .map(|until_ms| random.within(50..until_ms))
        .collect();
    strikes.sort_unstable();
    strikes
}
