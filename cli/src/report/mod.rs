//! `retouch report`, and the report that `launch` ends with: held-out measures before and after, curves, pictures.

mod chart;
mod html;
mod summary;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, bail};
use clap::Args;
use retouch_coordinator::store::Reader;
use retouch_evaluation::{HeldOut, Outcome, contact_sheet, sheet};
use retouch_learner::card::Card;
use retouch_proto::{
    Iteration, RunConfig,
    files::{PUBLIC, write_whole},
    run_folder::{LATEST_ADAPTER, RunFolder, SAMPLES},
    status::IterationMetrics,
};

use self::{
    html::Example,
    summary::{IterationPoint, Report, Setup},
};
use crate::{
    config::check_files,
    control::{is_held, recorded_config, run_folders},
    dataset::Images,
    destination,
    evaluating::Evaluating,
    heldout, memory,
    meter::Lines,
    output::remark,
    picture,
    samples::Film,
    show::{duration, now_unix_ms},
    totals::Totals,
};

/// Pairs shown as pictures.
const EXAMPLES: usize = 24;
/// Pairs that stand side by side on a sheet.
pub(crate) const SHEET_COLUMNS: u32 = 2;

/// Evaluate a run, at any time, and write its report.
///
/// Takes the newest exported adapter of the run and compares it with the base on the held-out
/// pairs, as `launch` does at the end, and writes report.json, report.html and the pictures into
/// the run folder. The run may be going on: what was learned after the last checkpoint is not in
/// the adapter yet. `retouch checkpoint RUN_FOLDER` makes one now.
///
/// Example:
///
///   retouch checkpoint runs/first && retouch report runs/first
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ReportArgs {
    /// The run's folder, as `launch` printed it.
    #[arg(value_name = "RUN_FOLDER", add = run_folders())]
    folder: PathBuf,
}

/// Who makes the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Author {
    /// The launch that owns the folder: the evaluation's time counts as the run's.
    Launch,
    /// Somebody who looks at a run that may be going on.
    Onlooker,
}

pub(crate) fn run(args: ReportArgs) -> anyhow::Result<()> {
    let folder = RunFolder::new(args.folder);
    let config = recorded_config(&folder)?;
    check_files(&config, config.evaluation.pairs, Images::Named)?;
    destination::check_folder(folder.path())?;
    make(&config, &folder, Author::Onlooker)
}

/// Evaluates the run's newest adapter on held-out pairs and writes `report.json`, `report.html` and the pictures.
pub(crate) fn make(config: &RunConfig, folder: &RunFolder, author: Author) -> anyhow::Result<()> {
    let record = Reader::open(folder.path())?;
    let history = record.iterations()?;
    let Some((adapter_iteration, adapter)) = record.newest_adapter()? else {
        bail!(
            "the run in {0} has no adapter yet: it has written no checkpoint; `retouch checkpoint {0}` makes one of a \
             run that is going on",
            folder.path().display()
        );
    };
    let adapter = adapter.to_string();
    let evaluation_started = Instant::now();
    let (heldout, outcomes) = evaluate(config, folder, &adapter, author)?;
    let evaluate_s = evaluation_started.elapsed().as_secs_f64();
    let peak_kib = memory::peak_resident_kib(std::process::id());
    let totals = match author {
        Author::Launch => Totals::add_evaluation(folder, evaluate_s, peak_kib)?,
        Author::Onlooker => Totals::load(folder)?,
    };
    let report = Report {
        name: config.name.to_string(),
        setup: Setup::of(config, now_unix_ms()),
        state: state(config, folder, history.len()).to_owned(),
        iterations: history.len() as u32,
        heldout,
        adapter,
        adapter_iteration: adapter_iteration.0,
        wall_s: totals.wall_s,
        peak_rss_mib: totals.peak_rss_mib,
        stage_s: stage_seconds(&history, (!outcomes.is_empty()).then_some(evaluate_s)),
        curve: history.iter().map(IterationPoint::from).collect(),
    };
    describe_adapter(config, folder, &report)?;
    let examples = write_pictures(folder, &report, &outcomes)?;
    let page = folder.report_html();
    write_whole(
        &page,
        html::page(&report, &examples, &Film::of(folder).strips()),
        PUBLIC,
    )
    .with_context(|| format!("can't write {}", page.display()))?;
    report.save(&folder.report_json())?;
    print_summary(&report, folder);
    Ok(())
}

/// Has the model card of the adapter say what the evaluation found.
fn describe_adapter(config: &RunConfig, folder: &RunFolder, report: &Report) -> anyhow::Result<()> {
    let Some(heldout) = &report.heldout else {
        return Ok(());
    };
    let card = Card::of_run(config, Iteration(report.adapter_iteration));
    let card = card.with_results(heldout::text(heldout));
    Ok(card.write_text(&folder.adapter(&report.adapter))?)
}

/// Evaluates the adapter, if the run file asks for held-out pairs. A launch says in the folder how far it is.
fn evaluate(
    config: &RunConfig,
    folder: &RunFolder,
    adapter: &str,
    author: Author,
) -> anyhow::Result<(Option<HeldOut>, Vec<Outcome>)> {
    let pairs = u64::from(config.evaluation.pairs);
    if pairs == 0 {
        return Ok((None, Vec::new()));
    }
    let meter = heldout::meter(config, Lines::Output);
    let meter = match author {
        Author::Launch => {
            let folder = folder.clone();
            meter.noting(move |done| Evaluating { done, pairs }.save(&folder))
        }
        Author::Onlooker => meter,
    };
    let evaluated = heldout::evaluate(config, &folder.adapter(adapter), &meter);
    if author == Author::Launch {
        Evaluating::forget(folder);
    }
    let (heldout, outcomes) = evaluated?;
    Ok((Some(heldout), outcomes))
}

fn state(config: &RunConfig, folder: &RunFolder, iterations: usize) -> &'static str {
    if iterations as u32 >= config.iterations {
        "finished"
    } else if is_held(&folder.record_lock()) {
        "running"
    } else {
        "stopped"
    }
}

fn stage_seconds(history: &[IterationMetrics], evaluate_s: Option<f64>) -> BTreeMap<String, f64> {
    let sum = |pick: fn(&IterationMetrics) -> f64| history.iter().map(pick).sum::<f64>();
    let training = [
        ("rollout and score", sum(|m| m.stage_s.collect)),
        ("rollout, worker time", sum(|m| m.stage_s.rollout)),
        ("score, worker time", sum(|m| m.stage_s.score)),
        ("train", sum(|m| m.stage_s.train)),
    ];
    let stages = training
        .into_iter()
        .chain(evaluate_s.map(|seconds| ("evaluate", seconds)));
    stages
        .map(|(stage, seconds)| (stage.to_owned(), seconds))
        .collect()
}

/// Writes the contact sheet, and for each example a strip of its pictures.
fn write_pictures(
    folder: &RunFolder,
    report: &Report,
    outcomes: &[Outcome],
) -> anyhow::Result<Vec<Example>> {
    if outcomes.is_empty() {
        return Ok(Vec::new());
    }
    let samples = folder.samples();
    std::fs::create_dir_all(&samples)
        .with_context(|| format!("can't create {}", samples.display()))?;
    let shown = &outcomes[..outcomes.len().min(EXAMPLES)];
    picture::save(
        &contact_sheet(sheet_title(report), shown, SHEET_COLUMNS),
        &samples.join("contact_sheet.png"),
    )?;
    shown
        .iter()
        .enumerate()
        .map(|(index, outcome)| {
            let name = format!("pair_{index:03}.png");
            let cells = outcome.cells();
            let pictures = cells.iter().filter_map(|cell| cell.picture.as_deref());
            picture::save(&sheet::strip(pictures), &samples.join(&name))?;
            Ok(Example {
                prompt: outcome.pair.prompt.clone(),
                task: outcome.pair.task.clone(),
                picture: format!("{SAMPLES}/{name}"),
                scores: cells.into_iter().map(|cell| cell.lines).collect(),
            })
        })
        .collect()
}

/// What the pictures were made with.
fn sheet_title(report: &Report) -> Vec<String> {
    let setup = &report.setup;
    let sampling = report
        .heldout
        .iter()
        .map(|heldout| heldout.sampling.as_str());
    vec![
        format!(
            "{}: before and after {} iterations",
            report.name, report.adapter_iteration
        ),
        format!("model {}, data {}", setup.model, setup.dataset),
        format!(
            "{}, seed {}, {}, retouch {}",
            sampling.collect::<String>(),
            setup.seed,
            setup.date,
            setup.version
        ),
    ]
}

/// An adapter by the link to it, if there is one: hashes are longer than lines.
fn short_name(folder: &RunFolder, adapter: &str) -> PathBuf {
    let link = folder.adapters().join(LATEST_ADAPTER);
    match std::fs::read_link(&link) {
        Ok(to) if to == Path::new(adapter) => link,
        _ => folder.adapter(adapter),
    }
}

fn print_summary(report: &Report, folder: &RunFolder) {
    remark!(
        "\n{}: {} after iteration {}",
        report.name,
        report.state,
        report.iterations
    );
    match &report.heldout {
        Some(heldout) => remark!("{}", heldout::text(heldout)),
        None => remark!("not evaluated: evaluation.pairs is 0"),
    }
    for (stage, seconds) in &report.stage_s {
        remark!("  {stage:<22} {}", duration(*seconds));
    }
    remark!(
        "wall clock {}, peak memory {:.0} MiB",
        duration(report.wall_s),
        report.peak_rss_mib
    );
    remark!(
        "adapter {} ({})",
        short_name(folder, &report.adapter).display(),
        report.adapter_age()
    );
    remark!("report  {}", folder.report_html().display());
}
