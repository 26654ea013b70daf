//! What `launch` shows while a run goes on: one line per committed iteration and a bar with the rates.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use retouch_proto::status::{IterationMetrics, RunStatus, Stage};

use crate::{
    control::{ControlClient, Target},
    status::duration,
};

const POLL_EVERY: Duration = Duration::from_millis(500);

/// The lines and the bar; without a terminal only the lines.
pub(crate) struct Progress {
    bar: ProgressBar,
    shown: u32,
    stalled: Option<String>,
}

impl Progress {
    pub(crate) fn new(iterations: u32) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new(u64::from(iterations)).with_style(style())
        } else {
            ProgressBar::hidden()
        };
        Self {
            bar,
            shown: 0,
            stalled: None,
        }
    }

    /// Polls the coordinator and shows what is new, until the future is dropped. A coordinator that does not
    /// answer is being restarted: its silence is no error here.
    pub(crate) async fn follow(&mut self, target: &Target) {
        loop {
            if let Ok(mut control) = ControlClient::connect(target).await {
                while let Ok(status) = control.status().await {
                    self.show(&status);
                    tokio::time::sleep(POLL_EVERY).await;
                }
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    pub(crate) fn show(&mut self, status: &RunStatus) {
        for metrics in status.history.iter().filter(|m| m.iteration.0 > self.shown) {
            self.say(&line(metrics, status.iterations));
        }
        self.shown = status.history.last().map_or(self.shown, |m| m.iteration.0);
        let stalled = status.stalls.first().map(|stall| stall.cause.clone());
        if stalled != self.stalled {
            if let Some(cause) = &stalled {
                self.say(&format!("stalled: {cause}"));
            }
            self.stalled = stalled;
        }
        self.bar.set_position(u64::from(status.committed.0));
        self.bar.set_message(message(status));
    }

    /// Prints a line above the bar.
    pub(crate) fn say(&self, line: &str) {
        if self.bar.is_hidden() {
            println!("{line}")
        } else {
            self.bar.println(line)
        }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn line(metrics: &IterationMetrics, iterations: u32) -> String {
    let width = iterations.to_string().len();
    let loss = metrics
        .train
        .as_ref()
        .map_or("no update".to_owned(), |train| {
            format!("loss {:.4}  grad {:.3}", train.policy_loss, train.grad_norm)
        });
    format!(
        "iteration {:>width$}/{iterations}  reward {:.4} +- {:.4}  kept {}/{}  {loss}  {}",
        metrics.iteration.0,
        metrics.reward_mean,
        metrics.reward_std,
        metrics.kept,
        metrics.groups,
        duration(metrics.stage_s.wall),
    )
}

fn message(status: &RunStatus) -> String {
    let groups = &status.groups;
    let stage = match status.stage {
        Stage::Collecting => format!("scored {}/{}", groups.scored + groups.dropped, groups.total),
        other => other.to_string(),
    };
    let eta = status
        .eta_s
        .map(|eta| format!("  about {} left", duration(eta)))
        .unwrap_or_default();
    format!("{stage}  {:.1} samples/s{eta}", status.rates.samples_per_s)
}
