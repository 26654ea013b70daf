//! The held-out evaluation of an adapter, as `evaluate` and the report of a run show it.

use std::path::Path;

use retouch_dataset::Split;
use retouch_evaluation::{Comparison, Evaluator, HeldOut, Outcome, Pair, pairs};
use retouch_proto::RunConfig;
use retouch_rollout_worker::source::size_rule;
use retouch_tiny::{dataset::read_cases, oracle::Oracle};

use crate::meter::{Lines, Meter};

/// Evaluates the adapter in a PEFT folder as the run file says; `meter` counts its pairs.
pub(crate) fn evaluate(
    config: &RunConfig,
    adapter: &Path,
    meter: &Meter,
) -> anyhow::Result<(HeldOut, Vec<Outcome>)> {
    let pairs = read_pairs(config, config.evaluation.pairs as usize)?;
    let evaluator = Evaluator::load(config, adapter)?;
    let outcomes = evaluator.evaluate(pairs, &|| meter.advance())?;
    meter.finish();
    let heldout = HeldOut::of(&outcomes, evaluator.sampling());
    Ok((heldout, outcomes))
}

/// Counts the held-out pairs of a run file.
pub(crate) fn meter(config: &RunConfig, lines: Lines) -> Meter {
    Meter::new("evaluating", "pairs", config.evaluation.pairs.into(), lines)
}

/// The first `count` held-out pairs, or all where there are fewer.
pub(crate) fn read_first_pairs(config: &RunConfig, count: usize) -> anyhow::Result<Vec<Pair>> {
    let all = retouch_dataset::read(Path::new(&config.dataset.path), Split::Test)?.len();
    read_pairs(config, count.min(all))
}

/// The first `count` of the run's held-out pairs. Those of the toy dataset have their kinds and targets in its folder `oracle`.
fn read_pairs(config: &RunConfig, count: usize) -> anyhow::Result<Vec<Pair>> {
    let folder = Path::new(&config.dataset.path);
    let mut pairs = pairs::read(folder, count, size_rule(&config.model))?;
    if folder.join("oracle").is_dir() {
        for (pair, case) in pairs.iter_mut().zip(read_cases(folder, Split::Test)?) {
            pair.task = case.kind.name().to_owned();
            pair.target = Some(case.target_image());
            let oracle = Oracle::new(&case);
            pair.oracle = Some(Box::new(move |edit| oracle.verdict(edit)));
        }
    }
    Ok(pairs)
}

/// The measures, one a line.
pub(crate) fn text(heldout: &HeldOut) -> String {
    let mut lines = vec![format!(
        "{} held-out pairs, {}",
        heldout.pairs, heldout.sampling
    )];
    if let Some(oracle) = &heldout.oracle {
        lines.push(format!("  oracle     (0..5)  {}", line(oracle)));
    }
    for (name, part) in heldout.parts.named() {
        lines.push(format!("  {name:10} (0..1)  {}", line(&part)));
    }
    lines.push(format!("  judge      (0..1)  {}", line(&heldout.judge)));
    lines.join("\n")
}

fn line(measure: &Comparison) -> String {
    format!(
        "{:.3} -> {:.3}, gain {:+.3} [{:+.3}, {:+.3}]",
        measure.before.mean,
        measure.after.mean,
        measure.gain.mean,
        measure.gain.ci95[0],
        measure.gain.ci95[1],
    )
}
