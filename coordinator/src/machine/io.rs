//! What goes into the machine and what comes out of it: closed enums (A1).

use retouch_proto::status::{Controlled, Event};
use retouch_proto::worker::{Registration, Report, ReportReply};
use retouch_proto::{ContentHash, Generation, Iteration, WorkerId};

use super::record::Entry;

/// Names a caller that waits for an answer; chosen by the shell, opaque to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What can happen to the machine.
#[derive(Clone, Debug)]
pub enum Input {
    /// A worker joins; answered by [`Output::Registered`].
    Register(Ticket, Registration),
    /// A worker reports; answered by [`Output::Reply`], now or later.
    Report(Ticket, Report),
    /// The caller of a held report went away.
    HungUp(Ticket),
    /// A person wants something; answered by [`Output::Controlled`].
    Control(Ticket, Command),
    /// This process is to end, and the run to go on with the next one.
    Suspend,
    /// Time has passed: the deadline that the machine asked for.
    Tick,
}

/// What a person can want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Give out no more work.
    Pause,
    /// Give out work again.
    Resume,
    /// Finish the open iteration with a checkpoint, then end.
    Drain,
    /// Abandon open work, checkpoint the last committed state, then end.
    Stop,
    /// Write the last committed state down as soon as the learners are free.
    Checkpoint,
    /// Have one worker finish what it has, give it no more, and let it go once nothing is lost with it.
    DrainWorker(WorkerId),
    /// Have one worker's process end now, to be started again by whoever keeps it alive.
    RestartWorker(WorkerId),
}

/// What the machine wants done, in this order.
#[derive(Clone, Debug)]
pub enum Output {
    /// To be made durable before anything that comes after it leaves.
    Record(Entry),
    /// The answer to a registration.
    Registered(Ticket, Generation),
    /// The answer to a report.
    Reply(Ticket, ReportReply),
    /// The answer to a command: what it did, or why it can't be obeyed.
    Controlled(Ticket, Result<Controlled, String>),
    /// Something worth telling (also recorded).
    Event(Event),
    /// The run is over and its workers know, or had time enough to be told; or it is suspended.
    Exit(Outcome),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The last committed iteration.
    pub iteration: Iteration,
    /// The EMA adapter of the last checkpoint, if one was made.
    pub ema_adapter: Option<ContentHash>,
    /// Why the run could not go on, if it could not.
    pub failure: Option<String>,
    /// Whether only this process ended: the run goes on when it is started again.
    pub suspended: bool,
    /// Whether the last committed iteration is durable.
    pub checkpointed: bool,
    /// Counters over the whole run.
    pub totals: retouch_proto::status::Totals,
}
