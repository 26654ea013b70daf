//! What it does to the world when something strikes.

use retouch_proto::task::Task;
use retouch_proto::worker::Role;
use retouch_proto::{ContentHash, WorkerId};

use super::coordinator_side::RESUME_EVERY_MS;
use super::events::Event;
use super::faults::Strike;
use super::seat::AtWrite;
use super::world::World;
use crate::machine::io::{Command, Input};

impl World {
    /// Something strikes: one of the run's kinds, or a crash of a worker if none of them can.
    pub(super) fn strike(&mut self) {
        self.plan_strike();
        let kinds = std::mem::take(&mut self.scenario.faults.kinds);
        let first = self.random.next() as usize;
        let in_turn = (0..kinds.len()).map(|n| kinds[(first + n) % kinds.len()]);
        let mut tried = in_turn.chain([Strike::WorkerCrash, Strike::ClockJump]);
        let struck = tried.any(|kind| self.strikes_as(kind));
        self.scenario.faults.kinds = kinds;
        assert!(struck, "a clock can always jump");
    }

    /// Tells whether it could strike that way.
    fn strikes_as(&mut self, kind: Strike) -> bool {
        match kind {
            Strike::WorkerCrash => self.worker_crashes(),
            Strike::LearnerVanish => self.learner_is_to_vanish(),
            Strike::LearnersCrash => self.learners_crash(),
            Strike::WorkerPause => self.worker_is_stopped(),
            Strike::WorkerSlow => self.worker_is_slow(),
            Strike::WorkerDrain => self.worker_drains(),
            Strike::WorkerJoin => self.worker_joins(),
            Strike::TaskHang => self.tasks_hang(),
            Strike::BlobLoss => self.blob_is_lost(),
            Strike::Partition => self.partition(),
            Strike::PeerPartition => self.peer_partition(),
            Strike::CoordinatorCrash => self.coordinator_crashes(),
            Strike::CrashAtWrite => self.coordinator_is_to_die(),
            Strike::CoordinatorPause => self.coordinator_is_stopped(),
            Strike::CoordinatorSuspend => self.coordinator_is_to_end(),
            Strike::DiskFull => self.disk_is_full(),
            Strike::ClockJump => self.clock_leaps(),
            Strike::PersonPause => self.person(kind, Command::Pause),
            Strike::PersonDrain => self.person(kind, Command::Drain),
            Strike::PersonStop => self.person(kind, Command::Stop),
            Strike::PersonDrainsWorker => self.person_orders(kind, Command::DrainWorker),
            Strike::PersonRestartsWorker => self.person_orders(kind, Command::RestartWorker),
            Strike::PersonCheckpoint => self.person(kind, Command::Checkpoint),
        }
    }

    /// Some living worker that may be struck.
    fn victim(&mut self, may: impl Fn(&Self, usize) -> bool) -> Option<usize> {
        let alive: Vec<usize> = (0..self.workers.len())
            .filter(|worker| self.workers[*worker].alive && may(self, *worker))
            .collect();
        self.random.pick(&alive)
    }

    fn name(&self, worker: usize) -> String {
        self.workers[worker].id.to_string()
    }

    /// Whether somebody else of the role is there or will be.
    fn is_replaceable(&self, worker: usize) -> bool {
        let role = self.workers[worker].role;
        let others = (0..self.workers.len()).filter(|other| *other != worker);
        others
            .filter(|other| self.workers[*other].role == role && !self.workers[*other].leaving)
            .any(|other| !self.conditions[other].away)
    }

    fn worker_crashes(&mut self) -> bool {
        let Some(worker) = self.victim(|_, _| true) else {
            return false;
        };
        let name = self.name(worker);
        self.struck(Strike::WorkerCrash, &name, || "is killed".into());
        self.kill(worker);
        let delay_ms = self.random.within(10..5_000);
        self.after(delay_ms, Event::Starts { worker });
        true
    }

    fn learner_is_to_vanish(&mut self) -> bool {
        let trains = |world: &Self, worker: usize| {
            let tasks = world.workers[worker].running.values();
            tasks.clone().any(|task| matches!(task, Task::Train(_)))
        };
        match self.victim(trains) {
            Some(worker) => self.learner_vanishes(worker),
            None if self.learner_is_doomed => return false,
            None => self.learner_is_doomed = true,
        }
        true
    }

    /// Who begins a step while a learner is doomed is the one.
    pub(super) fn meet_doom(&mut self, worker: usize) {
        if std::mem::take(&mut self.learner_is_doomed) {
            self.learner_vanishes(worker);
        }
    }

    fn learner_vanishes(&mut self, worker: usize) {
        let stays_away = self.is_replaceable(worker) && self.random.chance(0.3);
        let name = self.name(worker);
        self.struck(Strike::LearnerVanish, &name, || match stays_away {
            true => "vanishes in the middle of a step, for good".into(),
            false => "is killed in the middle of a step".into(),
        });
        self.kill(worker);
        self.conditions[worker].away = stays_away;
        if !stays_away {
            let delay_ms = self.random.within(10..8_000);
            self.after(delay_ms, Event::Starts { worker });
        }
    }

    fn learners_crash(&mut self) -> bool {
        let learners: Vec<usize> = (0..self.workers.len())
            .filter(|worker| self.workers[*worker].role == Role::Learner)
            .filter(|worker| self.workers[*worker].alive)
            .collect();
        if learners.is_empty() {
            return false;
        }
        let names = self.names(&learners);
        self.struck(Strike::LearnersCrash, "power", || {
            format!("{names} are killed")
        });
        for worker in learners {
            self.kill(worker);
            let delay_ms = self.random.within(10..8_000);
            self.after(delay_ms, Event::Starts { worker });
        }
        true
    }

    fn worker_is_stopped(&mut self) -> bool {
        let goes =
            |world: &Self, worker: usize| world.conditions[worker].stopped_until_ms <= world.now_ms;
        let Some(worker) = self.victim(goes) else {
            return false;
        };
        let for_ms = self.random.within(200..6_000);
        self.conditions[worker].stopped_until_ms = self.now_ms + for_ms;
        let name = self.name(worker);
        self.struck(Strike::WorkerPause, &name, || {
            format!("is stopped for {for_ms} ms")
        });
        true
    }

    fn worker_is_slow(&mut self) -> bool {
        let Some(worker) = self.victim(|_, _| true) else {
            return false;
        };
        let for_ms = self.random.within(1_000..10_000);
        self.conditions[worker].slow_until_ms = self.now_ms + for_ms;
        let name = self.name(worker);
        self.struck(Strike::WorkerSlow, &name, || {
            format!("is slow for {for_ms} ms")
        });
        true
    }

    fn worker_drains(&mut self) -> bool {
        let may = |world: &Self, worker: usize| {
            !world.workers[worker].leaving && world.is_replaceable(worker)
        };
        let Some(worker) = self.victim(may) else {
            return false;
        };
        let name = self.name(worker);
        self.struck(Strike::WorkerDrain, &name, || {
            "is told to end (SIGTERM)".into()
        });
        self.workers[worker].leaving = true;
        self.report(worker);
        true
    }

    fn worker_joins(&mut self) -> bool {
        let away: Vec<usize> = (0..self.workers.len())
            .filter(|worker| self.conditions[*worker].away && !self.workers[*worker].alive)
            .collect();
        let Some(worker) = self.random.pick(&away) else {
            return false;
        };
        self.conditions[worker].away = false;
        let name = self.name(worker);
        self.struck(Strike::WorkerJoin, &name, || "joins the run".into());
        self.start_worker(worker);
        true
    }

    fn tasks_hang(&mut self) -> bool {
        let Some(worker) = self.victim(|_, _| true) else {
            return false;
        };
        let for_ms = self.random.within(200..3_000);
        self.conditions[worker].hangs_until_ms = self.now_ms + for_ms;
        let name = self.name(worker);
        self.struck(Strike::TaskHang, &name, || {
            format!("never ends what it begins in the next {for_ms} ms")
        });
        true
    }

    /// A bounded store drops something, not the newest states (the protocol forbids that).
    fn blob_is_lost(&mut self) -> bool {
        let drops = |world: &Self, worker: usize| {
            let fake = &world.workers[worker];
            fake.role == Role::Rollout && !fake.blobs.is_empty()
        };
        let Some(worker) = self.victim(drops) else {
            return false;
        };
        let mut blobs: Vec<ContentHash> = self.workers[worker].blobs.iter().copied().collect();
        blobs.sort();
        let hash = self.random.pick(&blobs).expect("it has some");
        self.workers[worker].lose(hash);
        let name = self.name(worker);
        self.struck(Strike::BlobLoss, &name, || {
            format!("drops blob {}", hash.short())
        });
        true
    }

    fn partition(&mut self) -> bool {
        let for_ms = self.random.within(300..8_000);
        let until_ms = self.now_ms + for_ms;
        let (up, down) = match self.random.within(0..4) {
            0 => (true, false),
            1 => (false, true),
            _ => (true, true),
        };
        let some = self.some_workers();
        for worker in &some {
            let cut = &mut self.network.cuts[*worker];
            if up {
                cut.up_until_ms = until_ms;
            }
            if down {
                cut.down_until_ms = until_ms;
            }
        }
        let names = self.names(&some);
        self.struck(Strike::Partition, "network", || {
            let ways = match (up, down) {
                (true, true) => "and the coordinator don't hear each other",
                (true, false) => "are not heard by the coordinator",
                _ => "don't hear the coordinator",
            };
            format!("{names} {ways} for {for_ms} ms")
        });
        true
    }

    fn peer_partition(&mut self) -> bool {
        let for_ms = self.random.within(300..4_000);
        let some = self.some_workers();
        for worker in &some {
            self.network.cuts[*worker].peers_until_ms = self.now_ms + for_ms;
        }
        let names = self.names(&some);
        self.struck(Strike::PeerPartition, "network", || {
            format!("{names} and the other workers don't reach each other for {for_ms} ms")
        });
        true
    }

    /// Between one worker and most of them.
    fn some_workers(&mut self) -> Vec<usize> {
        let share = 0.1 + 0.6 * (self.random.within(0..100) as f64 / 100.0);
        let mut some: Vec<usize> = (0..self.workers.len())
            .filter(|_| self.random.chance(share))
            .collect();
        if some.is_empty() {
            some.push(self.random.within(0..self.workers.len() as u64) as usize);
        }
        some
    }

    fn names(&self, workers: &[usize]) -> String {
        let names: Vec<&str> = workers
            .iter()
            .map(|worker| self.workers[*worker].id.as_str())
            .collect();
        names.join(", ")
    }

    fn coordinator_crashes(&mut self) -> bool {
        if self.seat.machine.is_none() {
            return false;
        }
        self.struck(Strike::CoordinatorCrash, "coordinator", || {
            "is killed".into()
        });
        self.coordinator_dies("its callers' connections break");
        true
    }

    fn coordinator_is_to_die(&mut self) -> bool {
        if self.seat.machine.is_none() || self.seat.dies.is_some() {
            return false;
        }
        let when = match self.random.chance(0.5) {
            true => AtWrite::Before,
            false => AtWrite::After,
        };
        self.seat.dies = Some(when);
        self.struck(Strike::CrashAtWrite, "coordinator", || match when {
            AtWrite::Before => "will be killed before its next write".into(),
            AtWrite::After => "will be killed after its next write".into(),
        });
        true
    }

    fn coordinator_is_stopped(&mut self) -> bool {
        if self.seat.machine.is_none() || self.seat.stopped_until_ms > self.now_ms {
            return false;
        }
        let for_ms = self.random.within(200..5_000);
        self.seat.stopped_until_ms = self.now_ms + for_ms;
        self.struck(Strike::CoordinatorPause, "coordinator", || {
            format!("is stopped for {for_ms} ms")
        });
        true
    }

    fn coordinator_is_to_end(&mut self) -> bool {
        if self.seat.machine.is_none() {
            return false;
        }
        self.struck(Strike::CoordinatorSuspend, "coordinator", || {
            "is told to end (SIGTERM)".into()
        });
        self.ask(Input::Suspend);
        true
    }

    fn disk_is_full(&mut self) -> bool {
        if self.now_ms < self.disk_full_until_ms {
            return false;
        }
        let for_ms = self.random.within(200..4_000);
        self.disk_full_until_ms = self.now_ms + for_ms;
        self.struck(Strike::DiskFull, "disk", || {
            format!("is full for {for_ms} ms")
        });
        true
    }

    /// A running coordinator's clock never goes back far; over a restart anything is possible.
    fn clock_leaps(&mut self) -> bool {
        let far_ms = self.random.within(1..3_600_000).cast_signed();
        let by_ms = match (self.seat.machine.is_some(), self.random.within(0..3)) {
            (true, 0) => -(far_ms % 1_000),
            (true, 1) => far_ms % 5_000,
            (true, _) => far_ms % 120_000,
            (false, 0) => -far_ms,
            (false, _) => far_ms,
        };
        self.struck(Strike::ClockJump, "coordinator", || {
            format!("has its clock moved by {by_ms} ms")
        });
        self.clock_jumps(by_ms);
        true
    }

    fn person(&mut self, strike: Strike, command: Command) -> bool {
        if self.seat.machine.is_none() {
            return false;
        }
        self.struck(strike, "somebody", || format!("says {command:?}"));
        let pauses = command == Command::Pause;
        self.command(command);
        if pauses {
            self.after(RESUME_EVERY_MS, Event::Resumes);
        }
        true
    }

    /// A worker that has not joined yet can be named too; the answer is that it is not there.
    fn person_orders(&mut self, strike: Strike, order: fn(WorkerId) -> Command) -> bool {
        let Some(worker) = self.victim(|_, _| true) else {
            return false;
        };
        let id = self.workers[worker].id.clone();
        self.person(strike, order(id))
    }
}
