//! What `launch` shows while a run goes on: a line for every committed iteration and for what people should know, and in
//! a terminal one bar a stage.

use std::{io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use retouch_coordinator::store::Reader;
use retouch_proto::{
    Iteration, RunFolder,
    status::{Event, EventKind, GroupCounts, IterationMetrics, RunStatus, Stage},
};

use crate::{
    control::{ControlClient, Target, Until},
    output::remark,
    show::{clock_now, duration},
};

const POLL_EVERY: Duration = Duration::from_millis(500);
/// Events that may come between two looks.
const EVENTS_MAX: usize = 4096;
const STAGES: usize = 4;

/// Lines above the bars, from whoever has something to say.
#[derive(Clone)]
pub(super) struct Lines(MultiProgress);

impl Lines {
    /// Says it above the bars, and in whatever standard output is redirected to.
    pub(super) fn say(&self, line: &str) {
        let line = format!("{}  {line}", clock_now());
        if self.0.is_hidden() || !std::io::stdout().is_terminal() {
            remark!("{line}");
        }
        // A terminal that can't be written to is no reason to end a run.
        let _ = self.0.println(line);
    }
}

/// The lines and the bars; without a terminal only the lines.
pub(super) struct Progress {
    lines: Lines,
    stages: [ProgressBar; STAGES],
    seen: Seen,
}

/// What was shown already, by this launch or an earlier one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) iteration: Iteration,
    /// The number of the last event.
    pub(super) event: u64,
}

impl Seen {
    /// All that is recorded.
    pub(super) fn recorded(folder: &RunFolder) -> Self {
        let Ok(record) = Reader::open(folder.path()) else {
            return Self::default();
        };
        let committed = record.committed().map(|committed| committed.iteration);
        let event = record.last_events(1).unwrap_or_default().pop();
        Self {
            iteration: committed.unwrap_or_default(),
            event: event.map_or(0, |event| event.sequence),
        }
    }
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
    pub(super) fn new(seen: Seen) -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self::drawn_on(target, seen)
    }

    fn drawn_on(target: ProgressDrawTarget, seen: Seen) -> Self {
        let bars = MultiProgress::with_draw_target(target);
        let stages = std::array::from_fn(|_| bars.add(ProgressBar::new(0).with_style(style())));
        Self {
            lines: Lines(bars),
            stages,
            seen,
        }
    }

    pub(super) fn lines(&self) -> Lines {
        self.lines.clone()
    }

    /// Polls the coordinator and shows what is new, until the future is dropped. A coordinator that does not
    /// answer is being restarted: its silence is no error here.
    pub(super) async fn follow(&mut self, target: &Target) {
        loop {
            if let Ok(mut control) = ControlClient::connect(target).await {
                while self.look(&mut control).await.is_ok() {
                    tokio::time::sleep(POLL_EVERY).await;
                }
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    async fn look(&mut self, control: &mut ControlClient) -> anyhow::Result<()> {
        let mut events = control.events(self.seen.event, Until::Now).await?;
        while let Some(event) = events.next().await? {
            self.tell(&event);
        }
        let status = control.status().await?;
        self.tell_iterations(&status.history, status.iterations, status.eta_s);
        self.draw(&status);
        Ok(())
    }

    fn draw(&self, status: &RunStatus) {
        for (bar, view) in self.stages.iter().zip(stages(status)) {
            bar.set_prefix(view.name);
            bar.set_length(view.all);
            bar.set_position(view.done);
            bar.set_message(view.message);
        }
    }

    /// Tells what the coordinator recorded after it was last asked, and takes the bars away.
    pub(super) fn finish(&mut self, folder: &RunFolder, iterations: u32) {
        self.stages.iter().for_each(ProgressBar::finish_and_clear);
        let Ok(record) = Reader::open(folder.path()) else {
            return;
        };
        for event in record.last_events(EVENTS_MAX).unwrap_or_default() {
            self.tell(&event);
        }
        self.tell_iterations(&record.iterations().unwrap_or_default(), iterations, None);
    }

    /// A line for each that is new; the last one says how long the rest will take.
    fn tell_iterations(
        &mut self,
        history: &[IterationMetrics],
        iterations: u32,
        eta_s: Option<f64>,
    ) {
        let seen = self.seen.iteration;
        let mut new = history.iter().filter(|m| m.iteration > seen).peekable();
        while let Some(metrics) = new.next() {
            let eta_s = eta_s.filter(|_| new.peek().is_none());
            self.lines.say(&line(metrics, iterations, eta_s));
            self.seen.iteration = metrics.iteration;
        }
    }

    fn tell(&mut self, event: &Event) {
        if event.sequence <= self.seen.event {
            return;
        }
        self.seen.event = event.sequence;
        if let Some(line) = event_line(event) {
            self.lines.say(&line);
        }
        if event.kind == EventKind::Rewound {
            // What is done once more is shown once more.
            let last = Iteration(event.iteration.0.saturating_sub(1));
            self.seen.iteration = self.seen.iteration.min(last);
        }
    }
}

/// What whoever waits for the run should know at once; `retouch events` has everything.
fn event_line(event: &Event) -> Option<String> {
    let message = &event.message;
    match event.kind {
        EventKind::Alarm => Some(format!("alarm: {message}")),
        EventKind::Stalled => Some(format!("stalled: {message}")),
        EventKind::Rewound => Some(format!("going back: {message}")),
        EventKind::Mended => Some(format!("mended: {message}")),
        EventKind::RanksDisagree => Some(format!("ranks disagree: {message}")),
        EventKind::Control => Some(message.clone()),
        // With `Finished` and `Failed` the launch ends, and says so itself.
        _ => None,
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:<10} {bar:16} {pos:>4}/{len:<4} {wide_msg}")
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

fn line(metrics: &IterationMetrics, iterations: u32, eta_s: Option<f64>) -> String {
    let width = iterations.to_string().len();
    let loss = metrics
        .train
        .as_ref()
        .map_or("no update".to_owned(), |train| {
            format!("loss {:.4}  grad {:.3}", train.policy_loss, train.grad_norm)
        });
    let eta = eta_s.map_or(String::new(), |eta| {
        format!(", about {} left", duration(eta))
    });
    format!(
        "iteration {:>width$}/{iterations}  reward {:.4} +- {:.4}  kept {}/{}  {loss}  {}{eta}",
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
    use crate::{control::status::tests::sample, meter::tests::Paper};

    fn event(sequence: u64, iteration: u32, kind: EventKind) -> Event {
        Event {
            sequence,
            time_unix_ms: 0,
            iteration: Iteration(iteration),
            kind,
            message: "x".to_owned(),
        }
    }

    #[test]
    fn what_an_earlier_launch_showed_is_shown_again_only_after_a_rewind() {
        let seen = Seen {
            iteration: Iteration(5),
            event: 7,
        };
        let mut progress = Progress::new(seen);
        let done = |iteration| IterationMetrics {
            iteration: Iteration(iteration),
            ..IterationMetrics::default()
        };
        progress.tell_iterations(&[done(4), done(5)], 9, None);
        progress.tell(&event(7, 3, EventKind::Rewound));
        assert_eq!(progress.seen, seen);
        progress.tell(&event(8, 4, EventKind::Rewound));
        assert_eq!(progress.seen.iteration, Iteration(3));
        progress.tell_iterations(&[done(3), done(4)], 9, None);
        assert_eq!(progress.seen.iteration, Iteration(4));
    }

    #[test]
    fn alarms_and_orders_are_told_and_routine_is_not() {
        let told = |kind| event_line(&event(1, 1, kind));
        assert_eq!(told(EventKind::Alarm).as_deref(), Some("alarm: x"));
        assert_eq!(told(EventKind::Control).as_deref(), Some("x"));
        assert_eq!(told(EventKind::WorkerJoined), None);
    }

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
            line(&sample.history[1], sample.iterations, sample.eta_s),
            "iteration  2/10  reward 0.6000 +- 0.2000  kept 3/4  loss 0.2500  grad 1.500  12.0 s, about 96.0 s left"
        );
    }

    #[test]
    fn bars_do_not_wrap_in_narrow_terminals() {
        for columns in [80, 60] {
            let paper = Paper::new(columns);
            let progress = Progress::drawn_on(paper.target(), Seen::default());
            progress.draw(&sample());
            progress.stages.iter().for_each(ProgressBar::tick);
            let widest = paper.widest();
            assert!(
                widest > 50 && widest <= usize::from(columns),
                "{columns}: {widest}"
            );
        }
    }
}
