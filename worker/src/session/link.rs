//! The loop that keeps a worker and the coordinator in step.
//!
//! One owner, no locks: it sends the report, takes the reply or what the role has
//! to say in the meantime, and sends the next one. A report that is overtaken is
//! abandoned: the next says all it said.

use std::time::Duration;

use retouch_proto::{
    LeaseId,
    task::{TaskFailure, TaskOutcome},
    worker::{Directive, Registered, Report, ReportReply, WorkerState},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    books::{Books, Wanted, Work},
    coordinator_grpc::{CallError, CoordinatorCalls},
    session::SessionError,
};
use crate::blobs::{BlobClient, BlobStore, Retention};

const REGISTER_DEADLINE: Duration = Duration::from_secs(10);
/// A reply may take this much longer than a report is held.
const REPLY_MARGIN: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

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
    pub(super) stop: CancellationToken,
}

/// Whether the loop goes on.
enum Next {
    Report,
    Pause(Duration),
    End,
    Restart,
}

/// Waits between attempts, longer each time, and gives up in the end.
pub(super) struct Backoff {
    since: Instant,
    pause: Duration,
    give_up_after: Duration,
    contact: Contact,
}

/// Whether the coordinator has ever taken this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contact {
    First,
    Known,
}

impl Backoff {
    /// For a coordinator that is called for the first time.
    pub(super) fn first(give_up_after: Duration) -> Self {
        Self {
            since: Instant::now(),
            pause: PAUSE_MIN,
            give_up_after,
            contact: Contact::First,
        }
    }

    /// For one that has taken this process before.
    fn new(give_up_after: Duration) -> Self {
        Self {
            contact: Contact::Known,
            ..Self::first(give_up_after)
        }
    }

    fn next(&mut self, error: CallError) -> Result<Duration, SessionError> {
        let away = self.since.elapsed();
        match error {
            CallError::Refused(reason) => Err(SessionError::Refused(reason)),
            // Whoever was trusted before may come back; a stranger at the first call is a wrong address or token.
            CallError::Distrust(reason) if self.contact == Contact::First => {
                Err(SessionError::Refused(reason))
            }
            CallError::Away(reason) | CallError::Distrust(reason) if away >= self.give_up_after => {
                Err(SessionError::Gone {
                    away_s: away.as_secs(),
                    reason,
                })
            }
            CallError::Away(reason) | CallError::Distrust(reason) => {
                tracing::debug!(reason, "the coordinator is away");
                let pause = self.pause;
                self.pause = (pause * 2).min(PAUSE_MAX);
                Ok(pause)
            }
        }
    }
}

/// Registers, again and again while the coordinator is away.
pub(super) async fn register(
    calls: &mut CoordinatorCalls,
    books: &mut Books,
    store: &BlobStore,
    mut backoff: Backoff,
    stop: &CancellationToken,
) -> Result<Registered, SessionError> {
    loop {
        // What the registration says to hold need not be told as a change.
        drop(store.take_changes());
        let call = calls.register(books.registration(store.hashes()), REGISTER_DEADLINE);
        let call = async {
            timeout(REGISTER_DEADLINE, call)
                .await
                .unwrap_or_else(|_| Err(silent(REGISTER_DEADLINE)))
        };
        let result = tokio::select! {
            result = call => result,
            () = stop.cancelled() => return Err(SessionError::Stopped),
        };
        match result {
            Ok(registered) => {
                books.registered(registered.generation);
                return Ok(registered);
            }
            Err(error) => {
                let pause = backoff.next(error)?;
                calls.follow();
                tokio::select! {
                    () = sleep(pause) => {}
                    () = stop.cancelled() => return Err(SessionError::Stopped),
                }
            }
        }
    }
}

fn silent(deadline: Duration) -> CallError {
    CallError::Away(format!("no answer within {} ms", deadline.as_millis()))
}

impl Link {
    /// Keeps in step until the run has ended or the process should.
    pub(super) async fn run(mut self) -> Result<(), SessionError> {
        let mut backoff = Backoff::new(self.pace.give_up_after);
        let mut leave_by: Option<Instant> = None;
        let outcome = loop {
            if self.stop.is_cancelled() && leave_by.is_none() {
                self.books.set_state(WorkerState::Leaving);
                leave_by = Some(Instant::now() + self.pace.stop_grace);
            }
            let next = match leave_by {
                // Idle includes that all results were taken: one that was not would be made again elsewhere.
                Some(_) if self.books.is_idle() => Next::End,
                Some(deadline) if Instant::now() >= deadline => Next::End,
                _ => self.report_once(&mut backoff, leave_by).await?,
            };
            match next {
                Next::Report => {}
                Next::Pause(pause) => self.pause(pause, leave_by).await,
                Next::End => break Ok(()),
                Next::Restart => break Err(SessionError::Restart),
            }
        };
        self.books.cancel_all();
        self.say_goodbye().await;
        outcome
    }

    async fn report_once(
        &mut self,
        backoff: &mut Backoff,
        leave_by: Option<Instant>,
    ) -> Result<Next, SessionError> {
        let report = self.books.report(self.store.take_changes());
        let begin = Instant::now();
        let deadline = self.pace.held_max + REPLY_MARGIN;
        // A clone shares the connection, and leaves `self` free to follow a new address.
        let mut calls = self.calls.clone();
        let call = timeout(deadline, calls.report(report.clone(), deadline));
        let leaving = leave_by.is_some();
        let reply = tokio::select! {
            reply = call => reply.unwrap_or_else(|_| Err(silent(deadline))),
            // The coordinator may hold a report for seconds, and what the role has to say must not wait that long.
            // Nothing is lost with the abandoned one: it stays in the books until a report is answered.
            command = self.commands.recv() => return Ok(self.take(command)),
            () = self.stop.cancelled(), if !leaving => return Ok(Next::Report),
        };
        match reply {
            Ok(reply) => {
                // Patience is for one absence, not for all of a run's together.
                *backoff = Backoff::new(self.pace.give_up_after);
                self.answered(&report, reply, begin.elapsed()).await
            }
            Err(error) => {
                let pause = backoff.next(error)?;
                self.calls.follow();
                Ok(Next::Pause(pause))
            }
        }
    }

    async fn answered(
        &mut self,
        report: &Report,
        reply: ReportReply,
        took: Duration,
    ) -> Result<Next, SessionError> {
        // Not acknowledged: whoever does not know the generation has taken none of the report's results.
        if reply.directive == Directive::Reregister {
            tracing::info!("registering again: the coordinator does not know this generation");
            let backoff = Backoff::new(self.pace.give_up_after);
            register(
                &mut self.calls,
                &mut self.books,
                &self.store,
                backoff,
                &self.stop,
            )
            .await?;
            return Ok(Next::Report);
        }
        self.books.acknowledge(report);
        let wanted = self.books.apply(reply);
        if wanted.directive == Directive::Shutdown {
            tracing::info!("the run has ended, or goes on without this worker");
            return Ok(Next::End);
        }
        if wanted.directive == Directive::Restart {
            tracing::info!("ending, to be started again");
            return Ok(Next::Restart);
        }
        let news = wanted.news;
        self.hand_out(wanted);
        // A report with free slots is held by the coordinator; one that comes back
        // at once with nothing would turn this into a busy loop.
        let held = self.books.slots_free() > 0 && (news || took > self.pace.heartbeat / 4);
        Ok(if held || news {
            Next::Report
        } else {
            Next::Pause(self.pace.heartbeat)
        })
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

    async fn pause(&mut self, pause: Duration, leave_by: Option<Instant>) {
        let leaving = leave_by.is_some();
        tokio::select! {
            () = sleep(pause) => {}
            command = self.commands.recv() => drop(self.take(command)),
            () = self.stop.cancelled(), if !leaving => {}
        }
    }

    /// Takes all that the role has to say at once.
    fn take(&mut self, first: Option<Command>) -> Next {
        let Some(first) = first else { return Next::End };
        self.note(first);
        while let Ok(command) = self.commands.try_recv() {
            self.note(command);
        }
        Next::Report
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
