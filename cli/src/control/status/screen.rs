//! The status as one screen of text.

use std::fmt::Write;

use retouch_proto::{
    metrics::{METRICS, Metric},
    status::{IterationMetrics, Presence, RunStatus, WorkerStatus},
};

use super::super::{record::View, workers::Table};
use crate::{
    fit::{Room, width, wrap},
    show::{duration, group_counts, measured, short, sparkline, step_stages, thinned},
};

/// Blocks of the reward trend.
const TREND_MAX: usize = 60;
/// What stands before the trend.
const REWARD: &str = "reward  ";
/// Iterations shown as rows.
const ITERATIONS_MAX: usize = 5;
/// The same on a low screen, which has no sums, step or judges.
const ITERATIONS_LOW: usize = 2;
/// Rows of a screen that is low.
const LOW: usize = 40;
/// After the row of a worker that is lost.
const LOST: &str = "  !";

pub(super) fn text(view: &View, room: Room) -> String {
    let status = &view.status;
    let mut screen = Screen {
        out: String::new(),
        columns: room.columns,
        is_low: room.rows < LOW,
    };
    screen.headline(status, view.recorded.is_some());
    if let Some(note) = view.note() {
        screen.line(&note, "  ");
    }
    screen.groups(status);
    screen.history(&status.history);
    screen.step(&status.history);
    let stalls = stalls(status, room.columns);
    let rows = screen.rows() + stalls.len();
    if view.recorded.is_none() {
        screen.workers(&status.workers, room.rows.saturating_sub(rows));
    }
    stalls.iter().for_each(|line| screen.line(line, ""));
    screen.out
}

/// Lines so far, none wider than the room.
struct Screen {
    out: String,
    columns: usize,
    is_low: bool,
}

impl Screen {
    /// A line, or several; those after the first are indented.
    fn line(&mut self, text: &str, indent: &str) {
        for line in wrap(text, self.columns, indent) {
            let _ = writeln!(self.out, "{line}");
        }
    }

    fn rows(&self) -> usize {
        self.out.lines().count()
    }

    fn headline(&mut self, status: &RunStatus, is_recorded: bool) {
        let eta = status.eta_s.filter(|_| !status.state.is_over());
        let pending = match status.checkpoint_pending {
            true => " (another is being made)",
            false => "",
        };
        let mut head = format!(
            "{}: {}, iteration {} of {} ({}), checkpoint {}{pending}",
            status.run,
            status.state,
            status.iteration.0.min(status.iterations),
            status.iterations,
            status.stage,
            status.checkpointed,
        );
        if !is_recorded {
            head += &format!(", up {}", duration(status.uptime_s));
        }
        if let Some(eta) = eta {
            head += &format!(", about {} left", duration(eta));
        }
        self.line(&head, "  ");
        if let Some(reason) = &status.reason {
            self.line(&format!("reason: {reason}"), "  ");
        }
        let version = status.version.as_deref().map_or("base", short);
        let rates = &status.rates;
        let rates = format!(
            "   {:.1} samples/s   {:.1} scores/s   {:.0} iterations/h",
            rates.samples_per_s, rates.scores_per_s, rates.iterations_per_h,
        );
        let rates = if is_recorded { "" } else { &rates };
        self.line(&format!("version {version}{rates}"), "        ");
    }

    fn groups(&mut self, status: &RunStatus) {
        const INDENT: &str = "        ";
        let (groups, totals) = (&status.groups, &status.totals);
        let open = format!(
            "groups  {} open: {}",
            groups.total,
            group_counts(groups, ", ")
        );
        self.line(&open, INDENT);
        if self.is_low {
            return;
        }
        let so_far = format!(
            "{INDENT}so far: {} kept, {} filtered, {} dropped, {} made again; {} failed attempts",
            totals.groups_kept,
            totals.groups_filtered,
            totals.groups_dropped,
            totals.groups_remade,
            totals.attempts_failed,
        );
        self.line(&so_far, INDENT);
    }

    /// The whole reward trend as one line of blocks, and the last iterations as a table.
    fn history(&mut self, history: &[IterationMetrics]) {
        let scored = history.iter().filter(|m| m.scored > 0);
        let rewards: Vec<f64> = scored.map(|m| m.reward_mean).collect();
        if history.is_empty() {
            return;
        }
        self.out.push('\n');
        if let (Some(first), Some(last)) = (rewards.first(), rewards.last()) {
            let ends = format!("  {first:.4} -> {last:.4}");
            let taken = REWARD.len() + ends.len();
            let blocks = self.columns.saturating_sub(taken).clamp(1, TREND_MAX);
            let trend = sparkline(&thinned(&rewards, blocks));
            self.line(&format!("{REWARD}{trend}{ends}"), "  ");
        }
        let columns = self.metrics();
        let names = columns.iter().map(|m| cell(m, m.name)).collect::<String>();
        let _ = writeln!(self.out, "{ITERATION}{names}");
        let most = match self.is_low {
            true => ITERATIONS_LOW,
            false => ITERATIONS_MAX,
        };
        for metrics in &history[history.len().saturating_sub(most)..] {
            let values = columns.iter().map(|m| cell(m, &measured(m, metrics)));
            let values = values.collect::<String>();
            let width = ITERATION.len();
            let _ = writeln!(self.out, "{:>width$}{values}", metrics.iteration);
        }
        self.terms(history);
    }

    /// The columns of the table of iterations that there is room for.
    fn metrics(&self) -> Vec<&'static Metric> {
        let mut taken = ITERATION.len();
        let shown = METRICS.iter().filter(|metric| metric.is_in_status());
        let fitting = shown.take_while(|metric| {
            taken += cell(metric, "").len();
            taken <= self.columns
        });
        fitting.collect()
    }

    /// What each judge made of the last iteration, where there is more than one.
    fn terms(&mut self, history: &[IterationMetrics]) {
        let Some(last) = history
            .last()
            .filter(|last| last.reward_terms.len() > 1 && !self.is_low)
        else {
            return;
        };
        let terms = last.reward_terms.iter();
        let terms: Vec<String> = terms
            .map(|(name, mean)| format!("{name} {mean:.4}"))
            .collect();
        let title = format!(
            "mean scores of iteration {}, by reward term:",
            last.iteration
        );
        self.parts(&title, &terms);
    }

    /// Where the last training step's time went, on rank 0.
    fn step(&mut self, history: &[IterationMetrics]) {
        let Some((iteration, stages)) = step_stages(history).filter(|_| !self.is_low) else {
            return;
        };
        let sum: f64 = stages.iter().map(|(_, seconds)| seconds).sum();
        let parts: Vec<String> = stages
            .iter()
            .map(|(name, seconds)| format!("{name} {seconds:.2}"))
            .collect();
        let sum = duration(sum);
        let title = format!("learner step of iteration {iteration}, {sum} on rank 0, in seconds:");
        self.parts(&title, &parts);
    }

    /// A title, and under it parts that stay whole.
    fn parts(&mut self, title: &str, parts: &[String]) {
        self.out.push('\n');
        self.line(title, "  ");
        let mut line = String::new();
        for part in parts {
            let longer = match line.is_empty() {
                true => format!("  {part}"),
                false => format!("{line}   {part}"),
            };
            if width(&longer) > self.columns && !line.is_empty() {
                self.line(&line, "  ");
                line = format!("  {part}");
            } else {
                line = longer;
            }
        }
        self.line(&line, "  ");
    }

    /// All of them, or as many as there are rows for, those that are lost first.
    fn workers(&mut self, workers: &[WorkerStatus], rows: usize) {
        let table = Table::fitting(workers, self.columns.saturating_sub(LOST.len()));
        // An empty line, the header, and the line that says how many are not shown.
        let fit = match workers.len() + 2 > rows {
            true => rows.saturating_sub(3),
            false => workers.len(),
        };
        let mut shown: Vec<&WorkerStatus> = workers.iter().collect();
        if fit < workers.len() {
            shown.sort_by_key(|worker| worker.state != Presence::Lost);
        }
        let _ = writeln!(self.out, "\n{}", table.header().join(" ").trim_end());
        for worker in &shown[..fit] {
            let row = table.row(worker).join(" ");
            let lost = match worker.state {
                Presence::Lost => LOST,
                _ => "",
            };
            let _ = writeln!(self.out, "{row}{lost}");
        }
        if fit < workers.len() {
            let more = workers.len() - fit;
            self.line(&format!("... and {more} more; `top` scrolls"), "");
        }
    }
}

/// The first column of the table of iterations.
const ITERATION: &str = "iteration";

/// A cell of a metric's column: under its name, right-aligned, with a space before it.
fn cell(metric: &Metric, text: &str) -> String {
    const WIDTH_MIN: usize = 8;
    format!(" {text:>width$}", width = metric.name.len().max(WIDTH_MIN))
}

/// An empty line and what stalls, for each.
fn stalls(status: &RunStatus, columns: usize) -> Vec<String> {
    let stalls = status.stalls.iter().flat_map(|stall| {
        let for_s = stall.for_ms as f64 / 1e3;
        let text = format!("STALLED for {}: {}", duration(for_s), stall.cause);
        let mut lines = vec![String::new()];
        lines.extend(wrap(&text, columns, "  "));
        lines
    });
    stalls.collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use retouch_proto::{
        Generation, GroupId, Iteration, RunId, WorkerId, status::*, task::TrainMetrics,
        worker::Role,
    };

    use super::super::super::{
        record::{Coordinator, Recorded},
        workers::tests::many,
    };
    use super::*;
    use crate::evaluating::Evaluating;

    fn shown(status: RunStatus, room: Room) -> String {
        let recorded = None;
        text(&View { status, recorded }, room)
    }

    fn worker(name: &str, role: Role, state: Presence) -> WorkerStatus {
        let is_rollout = role == Role::Rollout;
        WorkerStatus {
            id: WorkerId::new(name).unwrap(),
            role,
            generation: Generation(1),
            state,
            device: "cpu".into(),
            blobs: None,
            policy: is_rollout.then(|| PolicyStatus {
                iteration: Iteration(2),
                version: Some("fedcba9876543210".into()),
            }),
            slots: 2,
            busy: u32::from(is_rollout),
            groups: vec![GroupId::default(); usize::from(is_rollout)],
            last_seen_ms: 300,
            done: 7,
            failed: 1,
        }
    }

    fn iteration(number: u32) -> IterationMetrics {
        IterationMetrics {
            iteration: Iteration(number),
            groups: 4,
            scored: 4,
            kept: 3,
            filtered: 1,
            filter_rate: 0.25,
            samples_trained: 12,
            reward_mean: 0.4 + 0.1 * f64::from(number),
            reward_std: 0.2,
            train: Some(TrainMetrics {
                policy_loss: 0.25,
                grad_norm: 1.5,
                fetch_s: 0.5,
                v_old_s: 1.0,
                backward_s: 2.0,
                ..TrainMetrics::default()
            }),
            stage_s: StageSeconds {
                train: 4.0,
                collect: 8.0,
                wall: 12.0,
                ..StageSeconds::default()
            },
            ..IterationMetrics::default()
        }
    }

    /// A run in its third iteration, with one of everything.
    pub(crate) fn sample() -> RunStatus {
        RunStatus {
            run: RunId::new("demo").unwrap(),
            state: RunState::Running,
            reason: None,
            iteration: Iteration(3),
            committed: Iteration(2),
            checkpointed: Iteration(1),
            checkpoint_pending: true,
            iterations: 10,
            stage: Stage::Collecting,
            groups: GroupCounts {
                total: 8,
                queued: 1,
                sampling: 2,
                sampled: 1,
                scoring: 1,
                scored: 2,
                dropped: 1,
            },
            workers: vec![
                worker("learner-0", Role::Learner, Presence::Ready),
                worker("reward-0", Role::Reward, Presence::Lost),
                worker("rollout-0", Role::Rollout, Presence::Ready),
            ],
            version: Some("fedcba9876543210".into()),
            rates: Rates {
                samples_per_s: 3.25,
                scores_per_s: 2.5,
                iterations_per_h: 300.0,
            },
            history: vec![iteration(1), iteration(2)],
            totals: Totals {
                groups_kept: 6,
                groups_filtered: 2,
                attempts_failed: 1,
                ..Totals::default()
            },
            eta_s: Some(96.0),
            uptime_s: 30.0,
            stalls: vec![Stall {
                cause: "1 groups wait for a reward worker, and none is registered".into(),
                for_ms: 4_000,
            }],
        }
    }

    #[test]
    fn judges_are_told_apart_where_there_are_several() {
        let mut last = iteration(2);
        last.reward_terms.insert("edit".into(), 0.6);
        let mut screen = Screen {
            out: String::new(),
            columns: usize::MAX,
            is_low: false,
        };
        screen.terms(std::slice::from_ref(&last));
        assert_eq!(screen.out, "");
        last.reward_terms.insert("held-out".into(), 0.25);
        screen.terms(&[last]);
        let out = screen.out;
        let expected =
            "\nmean scores of iteration 2, by reward term:\n  edit 0.6000   held-out 0.2500\n";
        assert_eq!(out, expected);
    }

    #[test]
    fn the_screen_has_everything() {
        let expected = "\
demo: running, iteration 3 of 10 (collecting), checkpoint 1 (another is being made), up 30.0 s, about 96.0 s left
version fedcba987654   3.2 samples/s   2.5 scores/s   300 iterations/h
groups  8 open: 1 queued, 2 sampling, 1 sampled, 1 scoring, 2 scored, 1 dropped
        so far: 6 kept, 2 filtered, 0 dropped, 0 made again; 1 failed attempts

reward  ▁█  0.5000 -> 0.6000
iteration reward_mean reward_std policy_loss grad_norm filter_rate   groups     kept  seconds
        1      0.5000     0.2000      0.2500    1.5000        25 %        4        3   12.0 s
        2      0.6000     0.2000      0.2500    1.5000        25 %        4        3   12.0 s

learner step of iteration 2, 3.5 s on rank 0, in seconds:
  data wait 0.50   prepare 0.00   v_old 1.00   v_ref 0.00   forward 0.00   backward 2.00   all-reduce 0.00   optimizer 0.00   checkpoint 0.00   publish 0.00

worker               role           state    device      load   done failed policy                seen
learner-0            learner        ready    cpu          0/2      7      1 -                    0.3 s
reward-0             reward-worker  lost     cpu          0/2      7      1 -                    0.3 s  !
rollout-0            rollout-worker ready    cpu          1/2      7      1 2:fedcba987654       0.3 s

STALLED for 4.0 s: 1 groups wait for a reward worker, and none is registered
";
        assert_eq!(shown(sample(), Room::UNLIMITED), expected);
    }

    #[test]
    fn a_run_that_has_just_begun_has_no_trend_and_no_step() {
        let fresh = RunStatus {
            history: Vec::new(),
            stalls: Vec::new(),
            ..sample()
        };
        let begun = shown(fresh, Room::UNLIMITED);
        assert!(
            !begun.contains(" -> ") && !begun.contains("learner step"),
            "{begun}"
        );
        let later = shown(sample(), Room::UNLIMITED);
        assert!(later.contains(" -> ") && later.contains("learner step"));
    }

    #[test]
    fn a_run_without_a_coordinator_has_no_workers_and_says_who_is_there() {
        let mut status = sample();
        status.state = RunState::Finished;
        status.workers.clear();
        let recorded = Some(Recorded {
            coordinator: Coordinator::Ended,
            launch: true,
            evaluation: Some(Evaluating {
                done: 12,
                pairs: 64,
            }),
        });
        let text = text(&View { status, recorded }, Room::UNLIMITED);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].ends_with("checkpoint 1 (another is being made)"),
            "{text}"
        );
        assert_eq!(lines[1], "version fedcba987654");
        assert_eq!(
            lines[2],
            "the coordinator has ended; evaluating, 12 of 64 pairs"
        );
        assert!(
            !text.contains("worker ") && text.contains("reward  "),
            "{text}"
        );
    }

    /// A screen's worth: long names, all stages, several judges, a stall.
    fn crowded() -> RunStatus {
        let mut status = sample();
        status.workers = many();
        status.history = (1..100).map(iteration).collect();
        let terms = [
            "edit",
            "a-judge-with-a-long-name",
            "another-judge-with-a-long-name",
        ];
        let last = status.history.last_mut().expect("one");
        last.reward_terms = terms.map(|name| (name.to_owned(), 0.5)).into();
        status.stalls[0].cause = "38 groups wait for a reward worker, and none is registered; \
                                  `retouch join reward-worker` brings one"
            .into();
        status
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_every_worker_is_there() {
        for columns in [80, 60] {
            let rows = usize::MAX;
            let text = shown(crowded(), Room { columns, rows });
            for line in text.lines() {
                assert!(width(line) <= columns, "{columns}: {line}\n{text}");
            }
            for number in 0..40 {
                let end = format!("{number:03} ");
                assert!(text.contains(&end), "{columns}: {end}\n{text}");
            }
        }
    }

    #[test]
    fn a_screen_that_is_watched_fits_and_says_who_is_not_on_it() {
        for (columns, rows) in [(80, 24), (60, 20), (80, 60)] {
            let mut status = crowded();
            status.workers[39].state = Presence::Lost;
            let text = shown(status, Room { columns, rows });
            assert!(text.lines().count() <= rows, "{columns} x {rows}\n{text}");
            assert!(text.contains("more; `top` scrolls"), "{text}");
            assert!(text.contains("039 "), "the lost one is shown\n{text}");
        }
    }
}
