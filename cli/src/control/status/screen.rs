//! The status as one screen of text.

use std::fmt::Write;

use retouch_proto::{
    metrics::{METRICS, Metric},
    status::{IterationMetrics, Presence, RunStatus, WorkerStatus},
};

use crate::show::{
    duration, group_counts, measured, policy, short, sparkline, step_stages, thinned,
};

/// Blocks of the reward trend.
const TREND_MAX: usize = 60;
/// Iterations shown as rows.
const ITERATIONS_MAX: usize = 5;

pub(super) fn text(status: &RunStatus) -> String {
    let mut out = String::new();
    headline(&mut out, status);
    groups(&mut out, status);
    history(&mut out, &status.history);
    step(&mut out, &status.history);
    workers(&mut out, &status.workers);
    for stall in &status.stalls {
        let for_s = stall.for_ms as f64 / 1e3;
        let _ = writeln!(out, "\nSTALLED for {}: {}", duration(for_s), stall.cause);
    }
    out
}

fn headline(out: &mut String, status: &RunStatus) {
    let eta = status.eta_s.filter(|_| !status.state.is_over());
    let _ = writeln!(
        out,
        "{}: {}, iteration {} of {} ({}), checkpoint {}{}, up {}{}",
        status.run,
        status.state,
        status.iteration.0.min(status.iterations),
        status.iterations,
        status.stage,
        status.checkpointed,
        if status.checkpoint_pending {
            " (another is being made)"
        } else {
            ""
        },
        duration(status.uptime_s),
        eta.map(|eta| format!(", about {} left", duration(eta)))
            .unwrap_or_default(),
    );
    if let Some(reason) = &status.reason {
        let _ = writeln!(out, "reason: {reason}");
    }
    let _ = writeln!(
        out,
        "version {}   {:.1} samples/s   {:.1} scores/s   {:.0} iterations/h",
        status.version.as_deref().map_or("base", short),
        status.rates.samples_per_s,
        status.rates.scores_per_s,
        status.rates.iterations_per_h,
    );
}

fn groups(out: &mut String, status: &RunStatus) {
    let (groups, totals) = (&status.groups, &status.totals);
    let _ = writeln!(
        out,
        "groups  {} open: {}",
        groups.total,
        group_counts(groups, ", "),
    );
    let _ = writeln!(
        out,
        "        so far: {} kept, {} filtered, {} dropped, {} made again; {} failed attempts",
        totals.groups_kept,
        totals.groups_filtered,
        totals.groups_dropped,
        totals.groups_remade,
        totals.attempts_failed,
    );
}

/// The whole reward trend as one line of blocks, and the last iterations as a table.
fn history(out: &mut String, history: &[IterationMetrics]) {
    let scored = history.iter().filter(|m| m.scored > 0);
    let rewards: Vec<f64> = scored.map(|m| m.reward_mean).collect();
    if history.is_empty() {
        return;
    }
    out.push('\n');
    if let (Some(first), Some(last)) = (rewards.first(), rewards.last()) {
        let trend = sparkline(&thinned(&rewards, TREND_MAX));
        let _ = writeln!(out, "reward  {trend}  {first:.4} -> {last:.4}");
    }
    let columns: Vec<&Metric> = METRICS.iter().filter(|m| m.is_in_status()).collect();
    let names: Vec<String> = columns.iter().map(|m| cell(m, m.name)).collect();
    let _ = writeln!(out, "iteration {}", names.join(" "));
    for metrics in &history[history.len().saturating_sub(ITERATIONS_MAX)..] {
        let values = columns.iter().map(|m| cell(m, &measured(m, metrics)));
        let values: Vec<String> = values.collect();
        let _ = writeln!(out, "{:>9} {}", metrics.iteration, values.join(" "));
    }
    terms(out, history);
}

/// A cell of a metric's column: under its name, right-aligned.
fn cell(metric: &Metric, text: &str) -> String {
    const WIDTH_MIN: usize = 8;
    format!("{text:>width$}", width = metric.name.len().max(WIDTH_MIN))
}

/// What each judge made of the last iteration, where there is more than one.
fn terms(out: &mut String, history: &[IterationMetrics]) {
    let Some(last) = history.last().filter(|last| last.reward_terms.len() > 1) else {
        return;
    };
    let terms = last.reward_terms.iter();
    let terms: Vec<String> = terms
        .map(|(name, mean)| format!("{name} {mean:.4}"))
        .collect();
    let (iteration, terms) = (last.iteration, terms.join("   "));
    let _ = writeln!(
        out,
        "\nmean scores of iteration {iteration}, by reward term:\n  {terms}"
    );
}

/// Where the last training step's time went, on rank 0.
fn step(out: &mut String, history: &[IterationMetrics]) {
    let Some((iteration, stages)) = step_stages(history) else {
        return;
    };
    let sum: f64 = stages.iter().map(|(_, seconds)| seconds).sum();
    let parts: Vec<String> = stages
        .iter()
        .map(|(name, seconds)| format!("{name} {seconds:.2}"))
        .collect();
    let _ = writeln!(
        out,
        "\nlearner step of iteration {iteration}, {} on rank 0, in seconds:\n  {}",
        duration(sum),
        parts.join("   ")
    );
}

fn workers(out: &mut String, workers: &[WorkerStatus]) {
    let _ = writeln!(
        out,
        "\n{:<20} {:<8} {:<8} {:<10} {:>5} {:>6} {:>6} {:<16} {:>9}",
        "worker", "role", "state", "device", "load", "done", "failed", "policy", "seen"
    );
    for worker in workers {
        let _ = writeln!(
            out,
            "{:<20} {:<8} {:<8} {:<10} {:>5} {:>6} {:>6} {:<16} {:>9}{}",
            worker.id,
            worker.role,
            worker.state,
            worker.device,
            format!("{}/{}", worker.busy, worker.slots),
            worker.done,
            worker.failed,
            worker.policy.as_ref().map_or("-".to_owned(), policy),
            duration(worker.last_seen_ms as f64 / 1e3),
            if worker.state == Presence::Lost {
                "  !"
            } else {
                ""
            },
        );
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use retouch_proto::{
        Generation, GroupId, Iteration, RunId, WorkerId, status::*, task::TrainMetrics,
        worker::Role,
    };

    use super::*;

    fn worker(name: &str, role: Role, state: Presence) -> WorkerStatus {
        let is_rollout = role == Role::Rollout;
        WorkerStatus {
            id: WorkerId::new(name).unwrap(),
            role,
            generation: Generation(1),
            state,
            device: "cpu".into(),
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
        let mut out = String::new();
        terms(&mut out, std::slice::from_ref(&last));
        assert_eq!(out, "");
        last.reward_terms.insert("held-out".into(), 0.25);
        terms(&mut out, &[last]);
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

worker               role     state    device      load   done failed policy                seen
learner-0            learner  ready    cpu          0/2      7      1 -                    0.3 s
reward-0             reward   lost     cpu          0/2      7      1 -                    0.3 s  !
rollout-0            rollout  ready    cpu          1/2      7      1 2:fedcba987654       0.3 s

STALLED for 4.0 s: 1 groups wait for a reward worker, and none is registered
";
        assert_eq!(text(&sample()), expected);
    }

    #[test]
    fn a_run_that_has_just_begun_has_no_trend_and_no_step() {
        let fresh = RunStatus {
            history: Vec::new(),
            stalls: Vec::new(),
            ..sample()
        };
        let shown = text(&fresh);
        assert!(
            !shown.contains(" -> ") && !shown.contains("learner step"),
            "{shown}"
        );
        assert!(text(&sample()).contains(" -> ") && text(&sample()).contains("learner step"));
    }
}
