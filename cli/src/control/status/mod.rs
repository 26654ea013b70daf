//! `retouch status`: one screen of what a run is doing, or the same as JSON.

mod screen;

use std::{io::IsTerminal, time::Duration};

use anyhow::bail;
use clap::Args;
use retouch_proto::status::RunState;

use super::{record::View, target::Target};
use crate::{exit::Unreachable, fit::Room, output};

#[cfg(test)]
pub(crate) use self::screen::tests;

const REFRESH_EVERY: Duration = Duration::from_secs(1);
const CLEAR_SCREEN: &str = "\x1b[2J\x1b[H";

/// Show what a run is doing: one screen, or JSON.
///
/// One screen: the iteration, groups by state, the reward trend, the parts of a learner's step, every worker with its
/// device, load, policy and silence, what stalls, and how long it will take. A run whose coordinator has ended is shown
/// as its record has it, if its folder is here. Lines are as wide as the terminal, or as COLUMNS says.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    target: Target,
    /// Print the whole status as JSON: every worker, the iteration, groups by state, versions, rates, the last hundred
    /// iterations. With --watch, one line a second.
    #[arg(long)]
    json: bool,
    /// Show it again every second until the run ends; exit code 1 if it failed.
    #[arg(long)]
    watch: bool,
}

pub(crate) async fn run(args: StatusArgs) -> anyhow::Result<()> {
    loop {
        let view = View::of(&args.target).await?;
        output::print(args.text(&view)?);
        if !args.watch {
            return Ok(());
        }
        match view.status.state {
            RunState::Finished => return Ok(()),
            RunState::Failed => {
                bail!("the run failed: {}", view.status.reason.unwrap_or_default())
            }
            _ if view.is_over() => {
                return Err(Unreachable(view.note().unwrap_or_default()).into());
            }
            _ => tokio::time::sleep(REFRESH_EVERY).await,
        }
    }
}

impl StatusArgs {
    fn text(&self, view: &View) -> anyhow::Result<String> {
        Ok(match (self.json, self.watch) {
            (true, true) => serde_json::to_string(view)? + "\n",
            (true, false) => serde_json::to_string_pretty(view)? + "\n",
            (false, true) if std::io::stdout().is_terminal() => {
                CLEAR_SCREEN.to_owned() + &screen::text(view, Room::of_stdout())
            }
            (false, _) => {
                // What does not fit on the screen is scrolled back to.
                let rows = usize::MAX;
                screen::text(
                    view,
                    Room {
                        rows,
                        ..Room::of_stdout()
                    },
                )
            }
        })
    }
}
