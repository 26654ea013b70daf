//! What `launch` shows while a run goes on: a line for every committed iteration, and in a terminal one bar a stage.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use retouch_proto::status::{GroupCounts, IterationMetrics, RunStatus, Stage};

use crate::{
    control::{ControlClient, Target},
    show::duration,
};

const POLL_EVERY: Duration = Duration::from_millis(500);
const STAGES: usize = 4;

/// The lines and the bars; without a terminal only the lines.
pub(crate) struct Progress {
    bars: MultiProgress,
    stages: [ProgressBar; STAGES],
    shown: u32,
    stalled: Option<String>,
}

/// What one bar says.
#[derive(Debug, PartialEq, Eq)]
struct StageView {
    name: &'static str,
    done: u64,
    all: u64,
    message: String,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bars = MultiProgress::with_draw_target(target);
        let stages = std::array::from_fn(|_| bars.add(ProgressBar::new(0).with_style(style())));
        Self {
            bars,
            stages,
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

    fn show(&mut self, status: &RunStatus) {
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
        for (bar, view) in self.stages.iter().zip(stages(status)) {
            bar.set_prefix(view.name);
            bar.set_length(view.all);
            bar.set_position(view.done);
            bar.set_message(view.message);
        }
    }

    /// Prints a line above the bars.
    fn say(&self, line: &str) {
        // An output that can't be written to is no reason to end a run.
        let _ = if self.bars.is_hidden() {
            writeln!(std::io::stdout(), "{line}")
        } else {
            self.bars.println(line)
        };
    }

    pub(crate) fn finish(&self) {
        self.stages.iter().for_each(ProgressBar::finish_and_clear);
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:<10} {bar:24} {pos:>4}/{len:<4} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The stages in the order of the work: a group that is past a stage counts as done there.
fn stages(status: &RunStatus) -> [StageView; STAGES] {
    let groups = &status.groups;
    let GroupCounts { total, dropped, .. } = *groups;
    let scored = groups.scored + dropped;
    let sampled = scored + groups.sampled + groups.scoring;
    let rates = &status.rates;
    let view = |name, done: u32, all: u32, message| StageView {
        name,
        done: done.into(),
        all: all.into(),
        message,
    };
    [
        view(
            "sample",
            sampled,
            total,
            format!("{:.1} samples/s", rates.samples_per_s),
        ),
        view(
            "judge",
            scored,
            total,
            format!("{:.1} scores/s{}", rates.scores_per_s, filtered(status)),
        ),
        train(status),
        view(
            "iteration",
            status.committed.0,
            status.iterations,
            overall(status),
        ),
    ]
}

fn train(status: &RunStatus) -> StageView {
    let doing = match status.stage {
        Stage::Training => "training",
        Stage::Checkpointing => "writing a checkpoint",
        Stage::Collecting => "waiting for groups",
        Stage::Idle => "done",
    };
    let last = status.history.last().filter(|last| last.train.is_some());
    let speed = last.map_or(String::new(), |last| {
        let per_s = f64::from(last.samples_trained) / last.stage_s.train.max(1e-3);
        format!(
            "; last step {}, {per_s:.1} samples/s",
            duration(last.stage_s.train)
        )
    });
    StageView {
        name: "train",
        done: u64::from(status.stage == Stage::Training),
        all: 1,
        message: doing.to_owned() + &speed,
    }
}

fn filtered(status: &RunStatus) -> String {
    let last = status.history.last();
    last.map_or(String::new(), |last| {
        format!("; {:.0} % filtered last", 100.0 * last.filter_rate)
    })
}

fn overall(status: &RunStatus) -> String {
    let rewards: Vec<f64> = status.history.iter().map(|m| m.reward_mean).collect();
    let reward = match (rewards.first(), rewards.last()) {
        (Some(first), Some(last)) if rewards.len() > 1 => {
            format!("reward {last:.4} (first {first:.4})")
        }
        (_, Some(last)) => format!("reward {last:.4}"),
        _ => "no reward yet".to_owned(),
    };
    let eta = status.eta_s.map_or(String::new(), |eta| {
        format!("; about {} left", duration(eta))
    });
    reward + &eta
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::tests::sample;

    #[test]
    fn every_stage_has_its_bar() {
        let shown: Vec<String> = stages(&sample())
            .iter()
            .map(|s| format!("{} {}/{} {}", s.name, s.done, s.all, s.message))
            .collect();
        assert_eq!(
            shown,
            [
                "sample 5/8 3.2 samples/s",
                "judge 3/8 2.5 scores/s; 25 % filtered last",
                "train 0/1 waiting for groups; last step 4.0 s, 3.0 samples/s",
                "iteration 2/10 reward 0.6000 (first 0.5000); about 96.0 s left",
            ]
        );
    }

    #[test]
    fn without_a_terminal_an_iteration_is_a_line() {
        let sample = sample();
        assert_eq!(
            line(&sample.history[1], sample.iterations),
            "iteration  2/10  reward 0.6000 +- 0.2000  kept 3/4  loss 0.2500  grad 1.500  12.0 s"
        );
    }
}
