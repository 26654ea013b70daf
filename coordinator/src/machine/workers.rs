//! Who is there: registrations, generations, heartbeats, held reports.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;

use retouch_proto::status::Presence;
use retouch_proto::worker::{Registration, Report, Role};
use retouch_proto::{BlobAddress, ContentHash, Generation, LeaseId, WorkerId};

use super::io::Ticket;
use super::leaving::Order;
use super::record::{Blob, Policy};

/// A worker is lost when it has been silent for so many heartbeats.
const HEARTBEATS_MISSED_MAX: u64 = 3;

/// A worker's current generation.
pub struct Worker {
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
    /// When the machine looks at it again; one alarm at a time (A7).
    pub alarm_ms: Option<u64>,
    /// The newest report's number.
    pub sequence: u64,
    /// The report that waits for an answer.
    pub held: Option<HeldReport>,
    /// What it is to work on.
    pub leases: BTreeSet<LeaseId>,
    /// Blobs it will need soon and was not told about.
    pub prefetch: Vec<Blob>,
    /// Tasks done.
    pub done: u64,
    /// Tasks failed.
    pub failed: u64,
    /// It was told that the run is over.
    pub dismissed: bool,
    /// What a person wants of it.
    pub order: Option<Order>,
    /// What it sampled with last (rollout workers).
    pub policy: Option<Policy>,
}

/// A report that waits for an answer.
pub struct HeldReport {
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
            alarm_ms: None,
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
    pub fn free(&self) -> u32 {
        let Some(held) = &self.held else { return 0 };
        if self.presence != Presence::Ready {
            return 0;
        }
        let unsent = self.leases.difference(&held.running).count() as u32;
        let room = self.slots.saturating_sub(self.leases.len() as u32);
        held.slots_free.saturating_sub(unsent).min(room)
    }

    /// Leases that the waiting report's answer has to carry.
    pub fn unsent(&self) -> Vec<LeaseId> {
        let held = self.held.as_ref();
        held.map_or(Vec::new(), |held| {
            self.leases.difference(&held.running).copied().collect()
        })
    }

    /// Leases that the waiting report's answer has to take back.
    pub fn unwanted(&self) -> Vec<LeaseId> {
        let held = self.held.as_ref();
        held.map_or(Vec::new(), |held| {
            held.running.difference(&self.leases).copied().collect()
        })
    }

    /// Whether it is alive.
    pub fn is_alive(&self) -> bool {
        !matches!(self.presence, Presence::Lost | Presence::Left)
    }
}

/// All workers that ever registered.
pub struct Workers {
    by_id: HashMap<WorkerId, Worker>,
    by_ticket: HashMap<Ticket, WorkerId>,
    /// All names; what is done with several workers is done in this order.
    by_role: BTreeMap<Role, BTreeSet<WorkerId>>,
    alive: BTreeMap<Role, usize>,
    next_generation: u64,
    heartbeat_ms: u64,
}

impl Workers {
    /// Numbers generations from the coordinator's incarnation.
    pub fn new(incarnation: u32, heartbeat_ms: u64) -> Self {
        Self {
            by_id: HashMap::new(),
            by_ticket: HashMap::new(),
            by_role: BTreeMap::new(),
            alive: BTreeMap::new(),
            next_generation: u64::from(incarnation) << 32,
            heartbeat_ms,
        }
    }

    /// Puts a new generation in place of the old one, which must have been taken leave of.
    pub fn register(&mut self, registration: Registration, now_ms: u64) -> Generation {
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
    pub fn end(&mut self, id: &WorkerId, presence: Presence) -> Option<&mut Worker> {
        let worker = self.by_id.get_mut(id).filter(|worker| worker.is_alive())?;
        worker.presence = presence;
        worker.prefetch.clear();
        *self.alive.entry(worker.role).or_default() -= 1;
        Some(worker)
    }

    /// How long a worker may be silent.
    pub fn silence_ms_max(&self) -> u64 {
        self.heartbeat_ms * HEARTBEATS_MISSED_MAX
    }

    /// Whether what this generation says still counts (A10).
    pub fn is_current(&self, id: &WorkerId, generation: Generation) -> bool {
        let worker = self.by_id.get(id);
        worker.is_some_and(|worker| worker.generation == generation && worker.is_alive())
    }

    /// Notes what a report says about the worker itself and holds it for an answer. Returns the
    /// ticket of an older report that it puts an end to. `None` leaves the older one: this one is
    /// late or a copy.
    pub fn hold(
        &mut self,
        report: &Report,
        held: HeldReport,
        now_ms: u64,
    ) -> Option<Option<Ticket>> {
        let lost_at_ms = held.until_ms.max(now_ms) + self.silence_ms_max();
        let worker = self.by_id.get_mut(&report.worker)?;
        if report.sequence <= worker.sequence {
            return None;
        }
        worker.sequence = report.sequence;
        // Whoever was ordered to go leaves, whatever it says itself.
        if worker.order.is_none() {
            worker.presence = report.state.into();
        }
        worker.last_seen_ms = now_ms;
        worker.lost_at_ms = lost_at_ms;
        self.by_ticket.insert(held.ticket, report.worker.clone());
        let older = worker.held.replace(held).map(|held| held.ticket);
        if let Some(ticket) = older {
            self.by_ticket.remove(&ticket);
        }
        Some(older)
    }

    /// Takes the waiting report to answer it.
    pub fn release(&mut self, id: &WorkerId) -> Option<HeldReport> {
        let held = self.by_id.get_mut(id)?.held.take()?;
        self.by_ticket.remove(&held.ticket);
        Some(held)
    }

    /// The caller of a waiting report went away: it is lost unless it is heard of soon.
    pub fn hung_up(&mut self, ticket: Ticket, now_ms: u64) -> Option<(WorkerId, u64)> {
        let id = self.by_ticket.remove(&ticket)?;
        let lost_at_ms = now_ms + self.heartbeat_ms;
        let worker = self.by_id.get_mut(&id)?;
        worker.held = None;
        worker.lost_at_ms = lost_at_ms;
        Some((id, lost_at_ms))
    }

    /// The worker of that name.
    pub fn get(&self, id: &WorkerId) -> Option<&Worker> {
        self.by_id.get(id)
    }

    /// The worker of that name.
    pub fn get_mut(&mut self, id: &WorkerId) -> Option<&mut Worker> {
        self.by_id.get_mut(id)
    }

    /// All of them, by role and name.
    pub fn iter(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        let ids = self.by_role.values().flatten();
        ids.filter_map(|id| self.by_id.get_key_value(id))
    }

    /// Forgets hints at blobs that nobody wants any more: a silent worker never took them.
    pub fn retain_hints(&mut self, wanted: &HashSet<ContentHash>) {
        for worker in self.by_id.values_mut() {
            worker.prefetch.retain(|blob| wanted.contains(&blob.hash));
        }
    }

    /// How many of a role live.
    pub fn count_alive(&self, role: Role) -> usize {
        self.alive.get(&role).copied().unwrap_or(0)
    }

    /// The living ones of a role, by name.
    pub fn alive(&self, role: Role) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        let ids = self.by_role.get(&role).into_iter().flatten();
        let workers = ids.filter_map(|id| self.by_id.get_key_value(id));
        workers.filter(|(_, worker)| worker.is_alive())
    }

    /// Where to fetch from a worker, while it lives.
    pub fn blob_address(&self, id: &WorkerId) -> Option<BlobAddress> {
        let worker = self.by_id.get(id).filter(|worker| worker.is_alive())?;
        Some(worker.blob_address.clone())
    }
}
