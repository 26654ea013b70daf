//! `retouch events`: what happened, and what happens.

use std::time::{Duration, Instant};

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use retouch_proto::status::{Event, EventKind};

use super::{
    control_grpc::{ControlClient, Until, is_end},
    record::record_of,
    target::Target,
};
use crate::{exit::Unreachable, output::say, show::utc};

/// How long a coordinator that restarts is waited for.
const AWAY_MAX: Duration = Duration::from_secs(60);
const TRY_EVERY: Duration = Duration::from_secs(1);
/// Events that a coordinator keeps at hand; the record has all.
const RECORD_MAX: usize = 1_000_000;

/// Tell what happened, and what happens.
///
/// Tells what happened in a run: who joined, left or was lost, which groups were dropped and why, what was sealed and
/// committed, what stalls, what people did. Asks the coordinator (which keeps the last 4096 at hand), or reads the
/// record if the run is over.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    #[command(flatten)]
    target: Target,
    /// Go on with what happens, over restarts of the coordinator, until the run ends.
    #[arg(long, short)]
    follow: bool,
    /// Only events of this kind, such as worker-lost; may be given often.
    #[arg(long = "kind", value_parser = event_kinds())]
    kinds: Vec<EventKind>,
    /// Begin with so many past ones.
    #[arg(long, default_value_t = 50, value_name = "COUNT")]
    last: usize,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Reads a kind's name, and lets shells complete it.
fn event_kinds() -> impl TypedValueParser<Value = EventKind> {
    let names = PossibleValuesParser::new(EventKind::ALL.map(EventKind::as_str));
    names.map(|name| EventKind::from_name(&name).expect("a listed name"))
}

pub(crate) async fn run(args: EventsArgs) -> anyhow::Result<()> {
    let past = past(&args.target).await?;
    let last = past.last().map_or(0, |event| event.sequence);
    let wanted: Vec<&Event> = past.iter().filter(|event| args.wants(event)).collect();
    for event in &wanted[wanted.len().saturating_sub(args.last)..] {
        args.print(event)?;
    }
    let is_over = past.last().is_some_and(is_end);
    if args.follow && !is_over {
        args.follow_from(last).await?;
    }
    Ok(())
}

async fn past(target: &Target) -> anyhow::Result<Vec<Event>> {
    let mut control = match ControlClient::connect(target).await {
        Ok(control) => control,
        Err(error) => return Ok(record_of(target, error)?.events(RECORD_MAX)?),
    };
    let mut events = control.events(0, Until::Now).await?;
    let mut past = Vec::new();
    while let Some(event) = events.next().await? {
        past.push(event);
    }
    Ok(past)
}

impl EventsArgs {
    async fn follow_from(&self, mut last: u64) -> anyhow::Result<()> {
        let mut away_since = Instant::now();
        loop {
            let error = match self.follow_once(&mut last).await {
                Ok(()) => return Ok(()),
                Err((error, heard)) => {
                    if heard {
                        away_since = Instant::now();
                    }
                    error
                }
            };
            if !error.is::<Unreachable>() || away_since.elapsed() > AWAY_MAX {
                return Err(error);
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
    }

    /// Until the run ends, or the coordinator goes away; the error says whether it was heard of.
    async fn follow_once(&self, last: &mut u64) -> Result<(), (anyhow::Error, bool)> {
        let unheard = |error| (error, false);
        let mut control = ControlClient::connect(&self.target)
            .await
            .map_err(unheard)?;
        let events = control.events(*last, Until::TheEnd).await;
        let mut events = events.map_err(unheard)?;
        loop {
            let event = events.next().await.map_err(|error| (error, true))?;
            let Some(event) = event else {
                let problem = "the coordinator ended the stream".to_owned();
                return Err((Unreachable(problem).into(), true));
            };
            *last = event.sequence;
            if self.wants(&event) {
                self.print(&event).map_err(unheard)?;
            }
            if is_end(&event) {
                return Ok(());
            }
        }
    }

    fn wants(&self, event: &Event) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&event.kind)
    }

    fn print(&self, event: &Event) -> anyhow::Result<()> {
        if self.json {
            say!("{}", serde_json::to_string(event)?);
        } else {
            say!("{}", line(event));
        }
        Ok(())
    }
}

/// An event in one line.
fn line(event: &Event) -> String {
    let (when, kind) = (utc(event.time_unix_ms), event.kind);
    format!(
        "{when}  {:>4}  {kind:<19}  {}",
        event.iteration, event.message
    )
}

#[cfg(test)]
mod tests {
    use retouch_proto::Iteration;

    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = Event {
            sequence: 7,
            time_unix_ms: 951_827_696_789,
            iteration: Iteration(3),
            kind: EventKind::WorkerLost,
            message: "reward worker reward-0: silent for 3000 ms".into(),
        };
        assert_eq!(
            line(&event),
            "2000-02-29 12:34:56     3  worker-lost          reward worker reward-0: silent for 3000 ms"
        );
    }
}
