//! Who is there: registrations, generations, heartbeats, held reports, room for work.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;

use retouch_proto::status::Presence;
use retouch_proto::worker::{Directive, Registration, Report, Role};
use retouch_proto::{BlobAddress, ContentHash, Generation, LeaseId, WorkerId};

use super::free::FreeWorkers;
use super::io::Ticket;
use super::record::{Blob, Policy};

/// A worker is lost once it has been silent for this many heartbeats.
const HEARTBEATS_MISSED_MAX: u64 = 3;

/// A worker's current generation.
pub(super) struct Worker {
    /// What it is for.
    pub role: Role,
    /// Which life (A10).
    pub generation: Generation,
    /// Tasks it can run at a time.
    pub slots: u32,
    /// The device, for people.
    pub device: String,
    /// Its `Blobs` service.
    pub blob_address: BlobAddress,
    /// Where its peers in the collective reach it.
    pub collective_address: Option<SocketAddr>,
    /// Whether it is there.
    pub presence: Presence,
    /// When it last said something.
    pub last_seen_ms: u64,
    /// When it is lost unless it says something.
    pub lost_at_ms: u64,
    /// When its timer is due, so that it can be cancelled: one timer at a time (A7).
    pub timer_ms: Option<u64>,
    /// The newest report's number, to recognise copies and late ones.
    sequence: u64,
    /// The report that waits for an answer.
    pub held: Option<HeldReport>,
    /// What it is to work on. What it says it runs may differ: the next answer brings the two together.
    pub leases: BTreeSet<LeaseId>,
    /// Hints at blobs it will need soon, not sent yet.
    pub prefetch: Vec<Blob>,
    /// Tasks done.
    pub done: u64,
    /// Tasks failed.
    pub failed: u64,
    /// It was told that the run is over, so the coordinator need not stay for it.
    pub dismissed: bool,
    /// What a person wants of it. Kept after it has left, to repeat the order should it not have heard.
    pub order: Option<Order>,
    /// What it sampled with last (rollout workers), for people.
    pub policy: Option<Policy>,
}

/// What a person wants of one worker, of this generation only (A10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// It finishes, gets no more, and leaves once nothing is lost with it, or at this time (A7).
    Leave {
        /// When at the latest.
        by_ms: u64,
    },
    /// It ends now and is started again.
    Restart,
}

impl Order {
    /// The order in an answer's words.
    pub(super) fn directive(self) -> Directive {
        match self {
            Self::Leave { .. } => Directive::Shutdown,
            Self::Restart => Directive::Restart,
        }
    }
}

/// What became of a report that was to be held for an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// It waits for an answer.
    First,
    /// It waits in place of this older one, which needs an empty answer.
    InPlaceOf(Ticket),
    /// It is late or a copy; a newer one may be waiting.
    Late,
}

/// A report that waits for an answer.
pub(super) struct HeldReport {
    /// Whom to answer.
    pub ticket: Ticket,
    /// When to answer in any case.
    pub until_ms: u64,
    /// Tasks it could take when it was sent.
    pub slots_free: u32,
    /// Leases it had accepted when it was sent.
    pub running: BTreeSet<LeaseId>,
}

impl Worker {
    fn new(registration: Registration, generation: Generation, now_ms: u64) -> Self {
        Self {
            role: registration.role,
            generation,
            slots: registration.slots,
            device: registration.device,
            blob_address: registration.blob_address,
            collective_address: registration.collective_address,
            presence: Presence::Loading,
            last_seen_ms: now_ms,
            lost_at_ms: now_ms,
            timer_ms: None,
            sequence: 0,
            held: None,
            leases: BTreeSet::new(),
            prefetch: Vec::new(),
            done: 0,
            failed: 0,
            dismissed: false,
            order: None,
            policy: None,
        }
    }

    /// Tasks that can be given to it right now: it waits for an answer and has room.
    pub(super) fn free(&self) -> u32 {
        let Some(held) = &self.held else { return 0 };
        if self.presence != Presence::Ready {
            return 0;
        }
        // The worker does not know yet of what was granted since its report, so its slots are not all free.
        let unsent = self.leases.difference(&held.running).count() as u32;
        let room = self.slots.saturating_sub(self.leases.len() as u32);
        held.slots_free.saturating_sub(unsent).min(room)
    }

    /// Leases that the waiting report's answer has to carry.
    pub(super) fn unsent(&self) -> Vec<LeaseId> {
        let held = self.held.as_ref();
        held.map_or(Vec::new(), |held| {
            self.leases.difference(&held.running).copied().collect()
        })
    }

    /// Leases that the waiting report's answer has to take back.
    pub(super) fn unwanted(&self) -> Vec<LeaseId> {
        let held = self.held.as_ref();
        held.map_or(Vec::new(), |held| {
            held.running.difference(&self.leases).copied().collect()
        })
    }

    /// Whether it is alive.
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.presence, Presence::Lost | Presence::Left)
    }
}

/// All workers that ever registered.
pub(super) struct Workers {
    by_id: HashMap<WorkerId, Worker>,
    by_ticket: HashMap<Ticket, WorkerId>,
    /// All names; what is done with several workers is done in this order, not the hash map's (A1).
    by_role: BTreeMap<Role, BTreeSet<WorkerId>>,
    /// Counted, since whether all are back is asked at each registration.
    alive: BTreeMap<Role, usize>,
    next_generation: u64,
    heartbeat_ms: u64,
    /// Workers whose answer may be due: a step answers these, not 10,000.
    touched: BTreeSet<WorkerId>,
    /// Workers that could take a task, kept up to date from the touched ones for the same reason.
    free: FreeWorkers,
}

impl Workers {
    /// Numbers generations from the coordinator's incarnation.
    pub(super) fn new(incarnation: u32, heartbeat_ms: u64) -> Self {
        Self {
            by_id: HashMap::new(),
            by_ticket: HashMap::new(),
            by_role: BTreeMap::new(),
            alive: BTreeMap::new(),
            next_generation: u64::from(incarnation) << 32,
            heartbeat_ms,
            touched: BTreeSet::new(),
            free: FreeWorkers::default(),
        }
    }

    /// Something about this worker changed: its answer may be due, or its room for work another.
    pub(super) fn touch(&mut self, id: &WorkerId) {
        self.touched.insert(id.clone());
    }

    /// Everyone's answer may be due.
    pub(super) fn touch_all(&mut self) {
        self.touched.extend(self.by_id.keys().cloned());
    }

    /// Workers whose answer may be due.
    pub(super) fn touched(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        let ids = self.touched.iter();
        ids.filter_map(|id| self.by_id.get_key_value(id))
    }

    /// Takes the workers whose answer may be due.
    pub(super) fn take_touched(&mut self) -> BTreeSet<WorkerId> {
        self.update_free();
        std::mem::take(&mut self.touched)
    }

    /// Brings up to date who could take a task.
    pub(super) fn update_free(&mut self) {
        for id in &self.touched {
            match self.by_id.get(id) {
                Some(worker) if worker.free() > 0 => {
                    let running = worker.leases.len() as u32;
                    self.free.insert(id, worker.role, running);
                }
                _ => self.free.remove(id),
            }
        }
    }

    /// How many of a role could take a task.
    pub(super) fn count_free(&self, role: Role) -> usize {
        self.free.count(role)
    }

    /// The least loaded ones of a role that could take a task, at most `count`.
    pub(super) fn least_loaded(&self, role: Role, count: usize) -> Vec<WorkerId> {
        self.free.least_loaded(role, count)
    }

    /// Puts a new generation in place of the old one, which must have been taken leave of.
    pub(super) fn register(&mut self, registration: Registration, now_ms: u64) -> Generation {
        self.next_generation += 1;
        let generation = Generation(self.next_generation);
        let (id, role) = (registration.worker.clone(), registration.role);
        let mut worker = Worker::new(registration, generation, now_ms);
        worker.lost_at_ms = now_ms + self.silence_ms_max();
        if let Some(old) = self.by_id.insert(id.clone(), worker) {
            self.by_role.entry(old.role).or_default().remove(&id);
            if let Some(held) = old.held {
                self.by_ticket.remove(&held.ticket);
            }
        }
        self.by_role.entry(role).or_default().insert(id);
        *self.alive.entry(role).or_default() += 1;
        generation
    }

    /// A worker's generation is over, [lost](Presence::Lost) or [left](Presence::Left); `None` if it was over already.
    pub(super) fn end(&mut self, id: &WorkerId, presence: Presence) -> Option<&mut Worker> {
        let worker = self.by_id.get_mut(id).filter(|worker| worker.is_alive())?;
        worker.presence = presence;
        worker.prefetch.clear();
        *self.alive.entry(worker.role).or_default() -= 1;
        Some(worker)
    }

    /// How long a worker may be silent.
    pub(super) fn silence_ms_max(&self) -> u64 {
        self.heartbeat_ms * HEARTBEATS_MISSED_MAX
    }

    /// Whether what this generation says still counts (A10).
    pub(super) fn is_current(&self, id: &WorkerId, generation: Generation) -> bool {
        let worker = self.by_id.get(id);
        worker.is_some_and(|worker| worker.generation == generation && worker.is_alive())
    }

    /// Notes what a current generation's report says about the worker itself, and holds it for an answer.
    pub(super) fn hold(&mut self, report: &Report, held: HeldReport, now_ms: u64) -> Held {
        let lost_at_ms = held.until_ms.max(now_ms) + self.silence_ms_max();
        let worker = self.by_id.get_mut(&report.worker);
        let Some(worker) = worker.filter(|worker| report.sequence > worker.sequence) else {
            return Held::Late;
        };
        worker.sequence = report.sequence;
        // Whoever was ordered to go leaves, whatever it says itself.
        if worker.order.is_none() {
            worker.presence = report.state.into();
        }
        worker.last_seen_ms = now_ms;
        worker.lost_at_ms = lost_at_ms;
        self.by_ticket.insert(held.ticket, report.worker.clone());
        match worker.held.replace(held) {
            None => Held::First,
            Some(older) => {
                self.by_ticket.remove(&older.ticket);
                Held::InPlaceOf(older.ticket)
            }
        }
    }

    /// Takes the waiting report to answer it: work can be given only with an answer, so it is not free until it
    /// reports again.
    pub(super) fn release(&mut self, id: &WorkerId) -> Option<HeldReport> {
        let held = self.by_id.get_mut(id)?.held.take()?;
        self.by_ticket.remove(&held.ticket);
        self.free.remove(id);
        Some(held)
    }

    /// The caller of a waiting report went away. That may be a dead process or a broken connection: it is lost
    /// unless it says something within a heartbeat.
    pub(super) fn hung_up(&mut self, ticket: Ticket, now_ms: u64) -> Option<WorkerId> {
        let id = self.by_ticket.remove(&ticket)?;
        let worker = self.by_id.get_mut(&id)?;
        worker.held = None;
        worker.lost_at_ms = now_ms + self.heartbeat_ms;
        Some(id)
    }

    /// The worker of that name.
    pub(super) fn get(&self, id: &WorkerId) -> Option<&Worker> {
        self.by_id.get(id)
    }

    /// The worker of that name.
    pub(super) fn get_mut(&mut self, id: &WorkerId) -> Option<&mut Worker> {
        self.by_id.get_mut(id)
    }

    /// All of them, by role and name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        let ids = self.by_role.values().flatten();
        ids.filter_map(|id| self.by_id.get_key_value(id))
    }

    /// Forgets hints at blobs that nobody wants any more: a silent worker never took them.
    pub(super) fn retain_hints(&mut self, wanted: &HashSet<ContentHash>) {
        for worker in self.by_id.values_mut() {
            worker.prefetch.retain(|blob| wanted.contains(&blob.hash));
        }
    }

    /// How many of a role live.
    pub(super) fn count_alive(&self, role: Role) -> usize {
        self.alive.get(&role).copied().unwrap_or(0)
    }

    /// How many of a role are ready for work, to tell waiting from having nobody to wait for.
    pub(super) fn count_ready(&self, role: Role) -> usize {
        let alive = self.alive(role).map(|(_, worker)| worker);
        alive
            .filter(|worker| worker.presence == Presence::Ready)
            .count()
    }

    /// The living ones of a role, by name.
    pub(super) fn alive(&self, role: Role) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        let ids = self.by_role.get(&role).into_iter().flatten();
        let workers = ids.filter_map(|id| self.by_id.get_key_value(id));
        workers.filter(|(_, worker)| worker.is_alive())
    }

    /// Where to fetch from a worker, while it lives.
    pub(super) fn blob_address(&self, id: &WorkerId) -> Option<BlobAddress> {
        let worker = self.by_id.get(id).filter(|worker| worker.is_alive())?;
        Some(worker.blob_address.clone())
    }
}
