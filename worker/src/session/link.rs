//! The loop that keeps a worker and the coordinator in step.
//!
//! One owner, no locks: it sends the report, takes the reply or what the role has
//! to say in the meantime, and sends the next one. A report that is overtaken is
//! abandoned: the next says all it said.
//!
//! A worker that is told to stop says that it is leaving and stays until the coordinator lets it go,
//! since others may need what it alone holds: blobs, or the learners' state, which has to be written down first.

use std::time::Duration;

use retouch_proto::{
    LeaseId,
    task::{TaskFailure, TaskOutcome},
    worker::{Directive, Registered, Report, ReportReply, WorkerState},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    backoff::Backoff,
    books::{Books, Told, Wanted, Work},
    coordinator_grpc::{CallError, CoordinatorCalls},
    session::SessionError,
};
use crate::blobs::{BlobClient, BlobStore, Retention};

const REGISTER_DEADLINE: Duration = Duration::from_secs(10);
/// A reply may take this much longer than a report is held.
const REPLY_MARGIN: Duration = Duration::from_secs(5);

/// What a role tells the loop.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "few are on their way at a time")]
pub(super) enum Command {
    /// A task has ended.
    Finished(LeaseId, TaskOutcome),
    /// Models are loaded.
    Ready,
}

/// How often and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) heartbeat: Duration,
    pub(super) held_max: Duration,
    pub(super) give_up_after: Duration,
    pub(super) stop_grace: Duration,
}

/// The loop and all it owns.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) books: Books,
    pub(super) calls: CoordinatorCalls,
    pub(super) store: BlobStore,
    pub(super) blobs: BlobClient,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) work: mpsc::Sender<Work>,
    pub(super) pace: Pace,
    /// When it last joined.
    pub(super) registered: Instant,
    pub(super) stop: CancellationToken,
}

/// What the loop does next.
enum Next {
    Report,
    Register,
    Pause(Duration),
}

/// Why the loop ends.
enum End {
    /// The coordinator has let this worker go, or is not there to do so.
    Dismissed,
    /// It ends by itself, and the coordinator has not heard of it.
    Unannounced,
    Failed(SessionError),
}

impl From<SessionError> for End {
    fn from(error: SessionError) -> Self {
        Self::Failed(error)
    }
}

/// Registers for the first time, again and again while the coordinator is away.
pub(super) async fn join(
    calls: &mut CoordinatorCalls,
    books: &mut Books,
    store: &BlobStore,
    give_up_after: Duration,
) -> Result<Registered, SessionError> {
    let mut backoff = Backoff::first(give_up_after);
    loop {
        match register(calls, books, store).await {
            Ok(registered) => return Ok(registered),
            Err(error) => sleep(backoff.next(error)?).await,
        }
        calls.follow();
    }
}

async fn register(
    calls: &mut CoordinatorCalls,
    books: &mut Books,
    store: &BlobStore,
) -> Result<Registered, CallError> {
    // What the registration says to hold need not be told as a change.
    drop(store.take_changes());
    let call = calls.register(books.registration(store.hashes()), REGISTER_DEADLINE);
    let registered = timeout(REGISTER_DEADLINE, call)
        .await
        .unwrap_or_else(|_| Err(silent(REGISTER_DEADLINE)))?;
    books.registered(registered.generation);
    Ok(registered)
}

fn silent(deadline: Duration) -> CallError {
    CallError::Away(format!("no answer within {} ms", deadline.as_millis()))
}

/// Never, if there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl Link {
    /// Keeps in step until the run has ended or the process should.
    pub(super) async fn run(mut self) -> Result<(), SessionError> {
        let mut backoff = Backoff::new(self.pace.give_up_after);
        let mut leave_by: Option<Instant> = None;
        let stop = self.stop.clone();
        let mut next = Next::Report;
        let end = loop {
            // A step may be abandoned wherever it waits: what was to be said stays in the books.
            let step = self.step(next, &mut backoff);
            next = tokio::select! {
                next = step => match next {
                    Ok(next) => next,
                    Err(end) => break end,
                },
                () = stop.cancelled(), if leave_by.is_none() => {
                    self.books.set_state(WorkerState::Leaving);
                    leave_by = Some(Instant::now() + self.pace.stop_grace);
                    Next::Report
                }
                () = at(leave_by) => {
                    let grace_s = self.pace.stop_grace.as_secs();
                    tracing::warn!(grace_s, "ending, although the coordinator has not let this worker go");
                    break End::Unannounced;
                }
            };
        };
        self.books.cancel_all();
        match end {
            End::Dismissed => Ok(()),
            End::Unannounced => {
                self.say_goodbye().await;
                Ok(())
            }
            End::Failed(error) => Err(error),
        }
    }

    async fn step(&mut self, next: Next, backoff: &mut Backoff) -> Result<Next, End> {
        match next {
            Next::Report => self.report(backoff).await,
            Next::Register => self.register(backoff).await,
            Next::Pause(pause) => self.pause(pause).await,
        }
    }

    async fn report(&mut self, backoff: &mut Backoff) -> Result<Next, End> {
        let report = self.books.report(self.store.take_changes());
        let begin = Instant::now();
        let deadline = self.pace.held_max + REPLY_MARGIN;
        let call = timeout(deadline, self.calls.report(report.clone(), deadline));
        let reply = tokio::select! {
            reply = call => reply.unwrap_or_else(|_| Err(silent(deadline))),
            // The coordinator may hold a report for seconds, and what the role has to say must not wait that long.
            // Nothing is lost with the abandoned one: it stays in the books until a report is answered.
            command = self.commands.recv() => return self.take(command),
        };
        match reply {
            Ok(reply) => self.answered(&report, reply, begin.elapsed(), backoff),
            Err(error) => self.unanswered(error, backoff),
        }
    }

    async fn register(&mut self, backoff: &mut Backoff) -> Result<Next, End> {
        // Two processes of one name would otherwise take turns without a pause.
        sleep_until(self.registered + self.pace.heartbeat).await;
        match register(&mut self.calls, &mut self.books, &self.store).await {
            Ok(_) => {
                self.registered = Instant::now();
                Ok(Next::Report)
            }
            // The report that follows the pause is told again to register.
            Err(error) => self.unanswered(error, backoff),
        }
    }

    fn answered(
        &mut self,
        report: &Report,
        reply: ReportReply,
        took: Duration,
        backoff: &mut Backoff,
    ) -> Result<Next, End> {
        // Not acknowledged: whoever does not know the generation has taken none of the report's results.
        if reply.directive == Directive::Reregister {
            tracing::info!("registering again: the coordinator does not know this generation");
            return Ok(Next::Register);
        }
        // Patience is for one absence, not for all of a run's together.
        *backoff = Backoff::new(self.pace.give_up_after);
        let told = self.books.acknowledge(report);
        let wanted = self.books.apply(reply);
        match wanted.directive {
            Directive::Shutdown => {
                tracing::info!("the run has ended, or goes on without this worker");
                return Err(End::Dismissed);
            }
            Directive::Restart => {
                tracing::info!("ending, to be started again");
                return Err(SessionError::Restart.into());
            }
            Directive::Continue | Directive::Reregister => {}
        }
        let news = wanted.news || told == Told::News;
        self.hand_out(wanted);
        // A report with free slots is held until there is something to say, unless it said something itself: then the
        // next is held, and must be there before there is work. What comes back at once without any news
        // would turn this into a busy loop, as would reports of full slots.
        let held = took > self.pace.heartbeat / 4;
        let has_room = self.books.slots_free() > 0;
        Ok(if held || (has_room && news) {
            Next::Report
        } else {
            Next::Pause(self.pace.heartbeat)
        })
    }

    fn unanswered(&mut self, error: CallError, backoff: &mut Backoff) -> Result<Next, End> {
        let away = !matches!(error, CallError::Refused(_));
        // Idle includes that all results were taken: one that was not would be made again elsewhere.
        if away && self.books.is_leaving() && self.books.is_idle() {
            tracing::info!(%error, "leaving: no coordinator is there that could want anything more");
            return Err(End::Dismissed);
        }
        let pause = backoff.next(error)?;
        self.calls.follow();
        Ok(Next::Pause(pause))
    }

    fn hand_out(&mut self, wanted: Wanted) {
        self.store.commit(wanted.committed);
        for blob in wanted.prefetch {
            let blobs = self.blobs.clone();
            // The hint is for the iteration that is open now. If it fails, the task fetches as if there were none.
            let retention = Retention::Until(wanted.committed.next());
            tokio::spawn(async move {
                if let Err(error) = blobs.fetch(&blob, retention).await {
                    tracing::debug!(%error, "fetching a blob early failed");
                }
            });
        }
        for work in wanted.work {
            let lease = work.assignment.lease;
            if let Err(error) = self.work.try_send(work) {
                let reason = format!("the worker takes no more work: {error}");
                let failure = TaskFailure::retryable(reason);
                self.books.finish(lease, TaskOutcome::Failed(failure));
            }
        }
    }

    async fn pause(&mut self, pause: Duration) -> Result<Next, End> {
        tokio::select! {
            () = sleep(pause) => Ok(Next::Report),
            command = self.commands.recv() => self.take(command),
        }
    }

    /// Takes all that the role has to say at once.
    fn take(&mut self, first: Option<Command>) -> Result<Next, End> {
        self.note(first.ok_or(End::Unannounced)?);
        while let Ok(command) = self.commands.try_recv() {
            self.note(command);
        }
        Ok(Next::Report)
    }

    fn note(&mut self, command: Command) {
        match command {
            Command::Finished(lease, outcome) => self.books.finish(lease, outcome),
            Command::Ready => self.books.set_state(WorkerState::Ready),
        }
    }

    /// One last report, so that the coordinator need not wait for silence.
    async fn say_goodbye(&mut self) {
        self.books.set_state(WorkerState::Leaving);
        let report = self.books.report(self.store.take_changes());
        let _ = timeout(
            self.pace.heartbeat,
            self.calls.report(report, self.pace.heartbeat),
        )
        .await;
    }
}
