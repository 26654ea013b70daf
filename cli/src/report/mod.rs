//! The report of a run: held-out measures before and after, curves, pictures.

mod chart;
mod html;
mod summary;

use std::{collections::BTreeMap, path::Path, time::Instant};

use anyhow::{Context, bail};
use image::RgbImage;
use retouch_coordinator::store::Reader;
use retouch_evaluation::{Outcome, contact_sheet};
use retouch_proto::{
    RunConfig,
    run_folder::{RunFolder, SAMPLES},
    status::IterationMetrics,
};

use self::{
    html::Example,
    summary::{IterationPoint, Report},
};
use crate::{heldout, memory, output::say, show::duration, totals::Totals};

/// Pairs shown as pictures.
const EXAMPLES: usize = 24;
const SHEET_COLUMNS: u32 = 3;

/// Evaluates the run's final adapter on held-out pairs and writes `report.json`, `report.html` and the pictures.
pub(crate) fn make(config: &RunConfig, folder: &RunFolder) -> anyhow::Result<()> {
    let history = Reader::open(folder.path())?.iterations()?;
    let Some(adapter) = history
        .iter()
        .rev()
        .find_map(|metrics| metrics.ema_adapter.clone())
    else {
        bail!(
            "the run in {} has exported no adapter yet",
            folder.path().display()
        );
    };
    let evaluation_started = Instant::now();
    let (heldout, outcomes) = heldout::evaluate(config, &folder.adapter(&adapter))?;
    let evaluate_s = evaluation_started.elapsed().as_secs_f64();
    let peak_kib = memory::peak_resident_kib(std::process::id());
    let totals = Totals::add_evaluation(folder, evaluate_s, peak_kib)?;
    let report = Report {
        name: config.name.to_string(),
        state: if history.len() as u32 >= config.iterations {
            "finished"
        } else {
            "stopped"
        }
        .to_owned(),
        iterations: history.len() as u32,
        heldout,
        adapter,
        wall_s: totals.wall_s,
        peak_rss_mib: totals.peak_rss_mib,
        stage_s: stage_seconds(&history, evaluate_s),
        curve: history.iter().map(IterationPoint::from).collect(),
    };
    let examples = write_pictures(folder, &outcomes)?;
    let page = folder.report_html();
    std::fs::write(&page, html::page(&report, &examples))
        .with_context(|| format!("can't write {}", page.display()))?;
    report.save(&folder.report_json())?;
    print_summary(&report, folder);
    Ok(())
}

fn stage_seconds(history: &[IterationMetrics], evaluate_s: f64) -> BTreeMap<String, f64> {
    let sum = |pick: fn(&IterationMetrics) -> f64| history.iter().map(pick).sum::<f64>();
    [
        ("rollout and score", sum(|m| m.stage_s.collect)),
        ("rollout, worker time", sum(|m| m.stage_s.rollout)),
        ("score, worker time", sum(|m| m.stage_s.score)),
        ("train", sum(|m| m.stage_s.train)),
        ("evaluate", evaluate_s),
    ]
    .map(|(stage, seconds)| (stage.to_owned(), seconds))
    .into()
}

/// Writes the contact sheet and one triptych for each example.
fn write_pictures(folder: &RunFolder, outcomes: &[Outcome]) -> anyhow::Result<Vec<Example>> {
    let samples = folder.samples();
    std::fs::create_dir_all(&samples)
        .with_context(|| format!("can't create {}", samples.display()))?;
    let shown = &outcomes[..outcomes.len().min(EXAMPLES)];
    save(
        &contact_sheet(shown, SHEET_COLUMNS),
        &samples.join("contact_sheet.png"),
    )?;
    shown
        .iter()
        .enumerate()
        .map(|(index, outcome)| {
            let name = format!("heldout_{index:03}.png");
            let triptych = contact_sheet(std::slice::from_ref(outcome), 1);
            save(&triptych, &samples.join(&name))?;
            Ok(Example {
                prompt: outcome.pair.prompt.clone(),
                picture: format!("{SAMPLES}/{name}"),
                scores: outcome.headline_scores(),
            })
        })
        .collect()
}

fn save(image: &RgbImage, path: &Path) -> anyhow::Result<()> {
    image
        .save(path)
        .with_context(|| format!("can't write {}", path.display()))
}

fn print_summary(report: &Report, folder: &RunFolder) {
    say!(
        "\n{}: {} after {} iterations",
        report.name,
        report.state,
        report.iterations
    );
    heldout::print(&report.heldout);
    for (stage, seconds) in &report.stage_s {
        say!("  {stage:<22} {}", duration(*seconds));
    }
    say!(
        "wall clock {}, peak memory {:.0} MiB",
        duration(report.wall_s),
        report.peak_rss_mib
    );
    say!("adapter {}", folder.adapter(&report.adapter).display());
    say!("report  {}", folder.report_html().display());
}
