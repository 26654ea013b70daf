//! `retouch status`: one screen of what a run is doing, or the same as JSON.

use std::{fmt::Write, io::IsTerminal, time::Duration};

use clap::Args;
use retouch_proto::status::{IterationMetrics, Presence, RunStatus};

use crate::control::{ControlClient, Target};

const REFRESH_EVERY: Duration = Duration::from_secs(1);
const CLEAR_SCREEN: &str = "\x1b[2J\x1b[H";

/// Shows what a run is doing.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    target: Target,
    /// Print the whole status as JSON.
    #[arg(long)]
    json: bool,
    /// Show it again every second until the run ends.
    #[arg(long)]
    watch: bool,
}

pub(crate) async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let mut control = ControlClient::connect(&args.target).await?;
    loop {
        let status = control.status().await?;
        if args.watch && std::io::stdout().is_terminal() {
            print!("{CLEAR_SCREEN}");
        }
        print!(
            "{}",
            if args.json {
                json(&status)?
            } else {
                screen(&status)
            }
        );
        if !args.watch || crate::launch::is_over(status.state) {
            return Ok(());
        }
        tokio::time::sleep(REFRESH_EVERY).await;
    }
}

fn json(status: &RunStatus) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(status)? + "\n")
}

fn screen(status: &RunStatus) -> String {
    let mut out = String::new();
    headline(&mut out, status);
    groups(&mut out, status);
    workers(&mut out, status);
    history(&mut out, &status.history);
    for stall in &status.stalls {
        let _ = writeln!(
            out,
            "\nSTALLED for {:.0} s: {}",
            stall.for_ms as f64 / 1e3,
            stall.cause
        );
    }
    out
}

fn headline(out: &mut String, status: &RunStatus) {
    let _ = writeln!(
        out,
        "{}: {}, iteration {} of {} ({}), checkpoint {}, up {}{}",
        status.run,
        status.state,
        status.iteration.0.min(status.iterations),
        status.iterations,
        status.stage,
        status.checkpointed,
        duration(status.uptime_s),
        status
            .eta_s
            .map(|eta| format!(", about {} left", duration(eta)))
            .unwrap_or_default(),
    );
    if let Some(reason) = &status.reason {
        let _ = writeln!(out, "reason: {reason}");
    }
    let _ = writeln!(
        out,
        "version {}   {:.1} samples/s   {:.1} scores/s   {:.0} iterations/h",
        status.version.as_deref().map_or("(base)", short),
        status.rates.samples_per_s,
        status.rates.scores_per_s,
        status.rates.iterations_per_h,
    );
}

fn groups(out: &mut String, status: &RunStatus) {
    let groups = &status.groups;
    let _ = writeln!(
        out,
        "groups  {} in all: {} queued, {} sampling, {} sampled, {} scoring, {} scored, {} dropped",
        groups.total,
        groups.queued,
        groups.sampling,
        groups.sampled,
        groups.scoring,
        groups.scored,
        groups.dropped,
    );
}

fn workers(out: &mut String, status: &RunStatus) {
    let _ = writeln!(
        out,
        "\n{:<20} {:<8} {:>4} {:<8} {:<10} {:>5} {:>6} {:>6} {:>9}",
        "worker", "role", "gen", "state", "device", "busy", "done", "failed", "last seen"
    );
    for worker in &status.workers {
        let _ = writeln!(
            out,
            "{:<20} {:<8} {:>4} {:<8} {:<10} {:>5} {:>6} {:>6} {:>8.1}s{}",
            worker.id,
            worker.role,
            worker.generation.0,
            worker.state,
            worker.device,
            format!("{}/{}", worker.busy, worker.slots),
            worker.done,
            worker.failed,
            worker.last_seen_ms as f64 / 1e3,
            if worker.state == Presence::Lost {
                "  !"
            } else {
                ""
            },
        );
    }
}

/// The last iterations as a table, and the whole reward trend as one line of blocks.
fn history(out: &mut String, history: &[IterationMetrics]) {
    const SHOWN: usize = 5;
    if history.is_empty() {
        return;
    }
    let rewards: Vec<f64> = history.iter().map(|m| m.reward_mean).collect();
    let _ = writeln!(out, "\nreward  {}", sparkline(&rewards));
    let _ = writeln!(
        out,
        "{:>9} {:>8} {:>8} {:>10} {:>12} {:>10} {:>8}",
        "iteration", "reward", "std", "kept", "policy loss", "grad norm", "time"
    );
    for metrics in &history[history.len().saturating_sub(SHOWN)..] {
        let train = metrics.train.as_ref();
        let _ = writeln!(
            out,
            "{:>9} {:>8.4} {:>8.4} {:>10} {:>12} {:>10} {:>8}",
            metrics.iteration,
            metrics.reward_mean,
            metrics.reward_std,
            format!("{}/{}", metrics.kept, metrics.groups),
            train.map_or("-".to_owned(), |t| format!("{:.5}", t.policy_loss)),
            train.map_or("-".to_owned(), |t| format!("{:.4}", t.grad_norm)),
            duration(metrics.stage_s.wall),
        );
    }
}

/// Eight heights of blocks between the lowest and the highest value.
pub(crate) fn sparkline(values: &[f64]) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let height = |value: f64| ((value - low) / (high - low).max(1e-12) * 7.0).round() as usize;
    values
        .iter()
        .map(|value| BLOCKS[height(*value).min(7)])
        .collect()
}

/// The first digits of a content hash, enough to tell versions apart.
pub(crate) fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// `9.3 s`, `12.5 min`, `3.1 h`.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_spans_its_range() {
        assert_eq!(sparkline(&[0.0, 0.5, 1.0]), "▁▅█");
        assert_eq!(sparkline(&[2.0, 2.0]), "▁▁");
    }
}
