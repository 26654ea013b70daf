//! The machine's only owner: waits for an input, applies it, makes the record durable, and only
//! then lets answers out.
//!
//! It runs on a thread of its own, since writing the record blocks. Callers talk to it through a
//! bounded queue (A7); when it is full they are told to come again.
//!
//! On a full disk nothing can be made durable, and nothing is let out: the machine still hears everyone, so that no worker
//! is taken for lost, and status and events are answered, but whoever waits for an answer waits until there is space. A
//! process that is told to end does so without it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use retouch_proto::Generation;
use retouch_proto::status::{Controlled, Event, RunStatus, Stall};
use retouch_proto::worker::{Registration, Report, ReportReply};
use tokio::sync::{broadcast, oneshot};

use crate::machine::Machine;
use crate::machine::io::{Command, Input, Outcome, Output, Ticket};
use crate::machine::record::Entry;
use crate::store::{Store, StoreError};
use crate::tensorboard::Charts;

/// Inputs that may wait.
const QUEUE_LEN: usize = 16_384;
/// Inputs in one transaction.
const BATCH_MAX: usize = 1_024;
/// Events kept at hand for those who ask late.
const EVENTS_MAX: usize = 4_096;
/// How long to wait when the machine asks for nothing.
const IDLE: Duration = Duration::from_secs(60);
/// How often a record on a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_secs(1);
/// How often it is told.
const FULL_TOLD: Duration = Duration::from_secs(5);

/// What callers ask for.
pub(crate) enum Request {
    /// A worker joins.
    Register(Registration, oneshot::Sender<Generation>),
    /// A worker reports; the ticket is the caller's, to hang up with.
    Report(Ticket, Report, oneshot::Sender<ReportReply>),
    /// The caller of a report went away.
    HungUp(Ticket),
    /// A person wants something.
    Control(Command, oneshot::Sender<Result<Controlled, String>>),
    /// The process is to end.
    Suspend,
    /// A person looks.
    Status(oneshot::Sender<RunStatus>),
    /// A person wants to know what happened after the event of that number, and what happens from now on.
    Events(
        u64,
        oneshot::Sender<(Vec<Event>, broadcast::Receiver<Event>)>,
    ),
}

/// Sends requests to the shell.
#[derive(Clone)]
pub(crate) struct Handle {
    queue: SyncSender<Request>,
    tickets: Arc<AtomicU64>,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The queue is full.
    Busy,
    /// The coordinator has ended.
    Gone,
}

impl Handle {
    /// Queues a request without waiting.
    pub(crate) fn send(&self, request: Request) -> Result<(), Refused> {
        self.queue.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => Refused::Busy,
            TrySendError::Disconnected(_) => Refused::Gone,
        })
    }

    /// A ticket that nobody else has.
    pub(crate) fn ticket(&self) -> Ticket {
        next_ticket(&self.tickets)
    }
}

fn next_ticket(tickets: &AtomicU64) -> Ticket {
    Ticket(tickets.fetch_add(1, Ordering::Relaxed))
}

/// Time for the machine: counts from the wall clock at the start and never goes back.
struct Clock {
    unix_ms: u64,
    started: Instant,
}

impl Clock {
    fn start() -> Self {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            unix_ms: since_epoch.as_millis() as u64,
            started: Instant::now(),
        }
    }

    fn now_ms(&self) -> u64 {
        self.unix_ms + self.started.elapsed().as_millis() as u64
    }
}

/// The answers that callers wait for.
enum Answer {
    Registered(oneshot::Sender<Generation>),
    Reply(oneshot::Sender<ReportReply>),
    Controlled(oneshot::Sender<Result<Controlled, String>>),
}

impl Answer {
    /// Whether the caller went away.
    fn is_given_up(&self) -> bool {
        match self {
            Self::Registered(sender) => sender.is_closed(),
            Self::Reply(sender) => sender.is_closed(),
            Self::Controlled(sender) => sender.is_closed(),
        }
    }
}

/// What the machine wants done, and what must be durable before.
#[derive(Default)]
struct Held {
    entries: Vec<Entry>,
    rest: Vec<Output>,
}

/// The record has no room.
struct FullDisk {
    problem: String,
    since: Instant,
    tried: Instant,
    told: Instant,
}

impl FullDisk {
    /// Notes one more attempt in vain, and tells it from time to time.
    fn note(noted: &mut Option<Self>, problem: String) {
        let now = Instant::now();
        let since = noted.as_ref().map_or(now, |full| full.since);
        let told = noted.as_ref().map(|full| full.told);
        let told = told.filter(|told| told.elapsed() < FULL_TOLD);
        if told.is_none() {
            tracing::warn!("{problem}: the run waits for it");
        }
        *noted = Some(Self {
            problem,
            since,
            tried: now,
            told: told.unwrap_or(now),
        });
    }

    fn stall(&self) -> Stall {
        Stall {
            cause: self.problem.clone(),
            for_ms: self.since.elapsed().as_millis() as u64,
        }
    }
}

/// The owner of machine and record.
pub(crate) struct Shell {
    machine: Machine,
    store: Store,
    held: Held,
    full_disk: Option<FullDisk>,
    /// The process is to end, whether or not there is space.
    is_ending: bool,
    clock: Clock,
    requests: Receiver<Request>,
    tickets: Arc<AtomicU64>,
    waiting: HashMap<Ticket, Answer>,
    events: VecDeque<Event>,
    listeners: broadcast::Sender<Event>,
    /// For TensorBoard.
    charts: Charts,
}

impl Shell {
    /// Sets up the queue; `start` makes the machine from the time it is given.
    pub(crate) fn new(
        start: impl FnOnce(u64) -> Machine,
        mut store: Store,
        mut charts: Charts,
    ) -> Result<(Self, Handle), StoreError> {
        let (queue, requests) = sync_channel(QUEUE_LEN);
        let tickets: Arc<AtomicU64> = AtomicU64::new(1).into();
        let handle = Handle {
            queue,
            tickets: tickets.clone(),
        };
        let clock = Clock::start();
        let machine = start(clock.now_ms());
        let events = store.last_events(EVENTS_MAX)?.into();
        charts.begin(&store.iterations()?, clock.now_ms());
        let (listeners, _) = broadcast::channel(EVENTS_MAX);
        let waiting = HashMap::new();
        let shell = Self {
            machine,
            store,
            held: Held::default(),
            full_disk: None,
            is_ending: false,
            clock,
            requests,
            tickets,
            waiting,
            events,
            listeners,
            charts,
        };
        Ok((shell, handle))
    }

    /// Runs until the run is over, or nobody is left who could ask for anything (`None`).
    ///
    /// # Errors
    /// If the record can't be written: what the machine knows is then not what is recorded, and
    /// only a new start from the record can be right.
    pub(crate) fn run(mut self) -> Result<Option<Outcome>, StoreError> {
        loop {
            if let Some(outcome) = self.let_out()? {
                return Ok(Some(outcome));
            }
            match self.requests.recv_timeout(self.patience()) {
                Ok(request) => self.apply_batch(request),
                Err(RecvTimeoutError::Timeout) => {
                    self.machine.handle(self.clock.now_ms(), Input::Tick)
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }

    /// How long to wait for a request.
    fn patience(&self) -> Duration {
        let deadline_ms = self.machine.next_deadline();
        let wait = deadline_ms.map_or(IDLE, |at_ms| {
            Duration::from_millis(at_ms.saturating_sub(self.clock.now_ms()))
        });
        match self.full_disk {
            Some(_) => wait.min(FULL_RETRY),
            None => wait,
        }
    }

    fn apply_batch(&mut self, first: Request) {
        self.apply(first);
        for _ in 1..BATCH_MAX {
            match self.requests.try_recv() {
                Ok(request) => self.apply(request),
                Err(_) => return,
            }
        }
    }

    fn apply(&mut self, request: Request) {
        let now_ms = self.clock.now_ms();
        let (input, answer) = match request {
            Request::Register(registration, sender) => {
                let ticket = next_ticket(&self.tickets);
                (
                    Input::Register(ticket, registration),
                    Some((ticket, Answer::Registered(sender))),
                )
            }
            Request::Report(ticket, report, sender) => (
                Input::Report(ticket, report),
                Some((ticket, Answer::Reply(sender))),
            ),
            Request::HungUp(ticket) => {
                self.waiting.remove(&ticket);
                (Input::HungUp(ticket), None)
            }
            Request::Control(command, sender) => {
                let ticket = next_ticket(&self.tickets);
                (
                    Input::Control(ticket, command),
                    Some((ticket, Answer::Controlled(sender))),
                )
            }
            Request::Suspend => {
                self.is_ending = true;
                (Input::Suspend, None)
            }
            Request::Status(sender) => {
                // A caller that went away needs no answer, here and below.
                let mut status = self.machine.status(now_ms);
                status
                    .stalls
                    .extend(self.full_disk.as_ref().map(FullDisk::stall));
                let _ = sender.send(status);
                return;
            }
            Request::Events(after, sender) => {
                let past = self.events.iter();
                let past = past.filter(|event| event.sequence > after).cloned();
                let past = past.collect();
                let _ = sender.send((past, self.listeners.subscribe()));
                return;
            }
        };
        self.waiting.extend(answer);
        self.machine.handle(now_ms, input);
    }

    /// Makes the record durable, then lets everything else out. Returns the outcome at the end.
    fn let_out(&mut self) -> Result<Option<Outcome>, StoreError> {
        while let Some(output) = self.machine.poll() {
            match output {
                Output::Record(entry) => self.held.entries.push(entry),
                output => self.held.rest.push(output),
            }
        }
        if !self.record()? {
            return Ok(None);
        }
        let Held { entries, rest } = std::mem::take(&mut self.held);
        self.chart(&entries);
        let mut outcome = None;
        for output in rest {
            match output {
                Output::Exit(exit) => outcome = Some(exit),
                output => self.send(output),
            }
        }
        Ok(outcome)
    }

    /// Makes what is held durable; `false` as long as there is no room for it.
    fn record(&mut self) -> Result<bool, StoreError> {
        let waits = |full: &FullDisk| full.tried.elapsed() < FULL_RETRY;
        if self.full_disk.as_ref().is_some_and(waits) {
            return Ok(false);
        }
        match self.store.write(&self.held.entries) {
            Ok(()) => {
                if let Some(full) = self.full_disk.take() {
                    let waited_s = full.since.elapsed().as_secs();
                    tracing::info!(
                        waited_s,
                        "there is space on the disk again: the run continues"
                    );
                }
                Ok(true)
            }
            Err(error @ StoreError::DiskFull { .. }) => {
                let exits = |output: &Output| matches!(output, Output::Exit(_));
                // The next coordinator continues from what is recorded.
                if self.is_ending && self.held.rest.iter().any(exits) {
                    return Err(error);
                }
                self.forget_the_gone();
                FullDisk::note(&mut self.full_disk, error.to_string());
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Answers that nobody waits for any more must not pile up while there is no space (A7).
    fn forget_the_gone(&mut self) {
        self.waiting.retain(|_, answer| !answer.is_given_up());
        let waiting = &self.waiting;
        self.held.rest.retain(|output| match output {
            Output::Registered(ticket, _)
            | Output::Reply(ticket, _)
            | Output::Controlled(ticket, _) => waiting.contains_key(ticket),
            Output::Record(_) | Output::Event(_) | Output::Exit(_) => true,
        });
    }

    /// Charts are nice to have: if they could not be written, the next commit tries again.
    fn chart(&mut self, entries: &[Entry]) {
        let committed = entries.iter().filter_map(|entry| match entry {
            Entry::Committed(entry) => Some(&entry.metrics),
            _ => None,
        });
        let is_rewound = |entry| matches!(entry, &Entry::Rewound { .. });
        let missed = !self.charts.are_open() && committed.clone().next().is_some();
        let now_ms = self.clock.now_ms();
        if !missed && !entries.iter().any(is_rewound) {
            return committed.for_each(|metrics| self.charts.add(metrics, now_ms));
        }
        match self.store.iterations() {
            Ok(history) => self.charts.begin(&history, now_ms),
            Err(error) => tracing::warn!(%error, "the charts stay as they are"),
        }
    }

    fn send(&mut self, output: Output) {
        match output {
            Output::Registered(ticket, generation) => {
                if let Some(Answer::Registered(sender)) = self.waiting.remove(&ticket) {
                    let _ = sender.send(generation);
                }
            }
            Output::Reply(ticket, reply) => {
                if let Some(Answer::Reply(sender)) = self.waiting.remove(&ticket) {
                    let _ = sender.send(reply);
                }
            }
            Output::Controlled(ticket, answer) => {
                if let Some(Answer::Controlled(sender)) = self.waiting.remove(&ticket) {
                    let _ = sender.send(answer);
                }
            }
            Output::Event(event) => self.tell(event),
            Output::Record(_) | Output::Exit(_) => unreachable!("taken out by the caller"),
        }
    }

    fn tell(&mut self, event: Event) {
        tracing::info!(kind = %event.kind, iteration = event.iteration.0, "{}", event.message);
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event.clone());
        let _ = self.listeners.send(event);
    }
}

#[cfg(test)]
mod tests;
