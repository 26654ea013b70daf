//! `retouch evaluate`: the base against an adapter on held-out pairs, by judge and, where targets are known, by oracle.

use std::{
    fs::create_dir_all,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args, ValueHint};
use retouch_evaluation::{Hidden, Outcome, blind, blind_sheet, contact_sheet};
use retouch_models::{editor::Layout, lora::AdapterFile};
use retouch_proto::files::{PUBLIC, write_whole};

use crate::{
    config::{ConfigArgs, check_files},
    dataset::Images,
    destination,
    exit::UsageError,
    heldout,
    meter::Lines,
    output, picture,
    report::SHEET_COLUMNS,
};

/// Compares an adapter with its base on held-out pairs, as the report of a run does.
///
/// With --blind, people can judge besides: pairs.png in the folder shows some pairs (source, A, B and, where it is known,
/// what was wanted), order.json says which of A and B is the adapter's, and revealed.png shows the same pairs with scores.
///
/// Examples:
///
///   retouch evaluate run.toml --adapter runs/first/adapters/final
///   retouch evaluate run.toml --adapter runs/first/adapters/final --blind compare
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct EvaluateArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The adapter: a PEFT folder, or a file of another program, as `edit` takes them.
    #[arg(long, value_hint = ValueHint::AnyPath)]
    adapter: PathBuf,
    /// A new folder for edits that people compare without knowing which is which.
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    blind: Option<PathBuf>,
    /// Pairs in that folder.
    #[arg(long, default_value_t = 24, requires = "blind", value_parser = clap::value_parser!(u16).range(1..))]
    blind_pairs: u16,
    /// Decides which pairs, and which edit stands where.
    #[arg(long, default_value_t = 0, requires = "blind")]
    blind_seed: u64,
    /// Print the numbers as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: EvaluateArgs) -> anyhow::Result<()> {
    let config = args.config.load()?;
    check_files(&config, config.evaluation.pairs, Images::Named)?;
    check_adapter(&args.adapter, Path::new(&config.model.path))?;
    if let Some(folder) = &args.blind {
        destination::check_new_folder(folder)?;
    }
    if config.evaluation.pairs == 0 {
        let problem = "evaluation.pairs is 0, which leaves nothing to evaluate: give 1 or more";
        return Err(UsageError(problem.to_owned()).into());
    }
    // Standard output is for the result.
    let meter = heldout::meter(&config, Lines::Error);
    let (heldout, outcomes) = heldout::evaluate(&config, &args.adapter, &meter)?;
    if let Some(folder) = &args.blind {
        let hidden = blind(&outcomes, args.blind_pairs.into(), args.blind_seed);
        write_blind(folder, &outcomes, &hidden)?;
    }
    output::result(match args.json {
        true => output::json(&heldout)?,
        false => heldout::text(&heldout) + "\n",
    })
}

/// Writes the pairs that people compare, and apart from them what they hide.
fn write_blind(folder: &Path, outcomes: &[Outcome], hidden: &[Hidden]) -> anyhow::Result<()> {
    create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
    let pairs = blind_sheet(outcomes, hidden, SHEET_COLUMNS);
    picture::save(&pairs, &folder.join("pairs.png"))?;
    let order = folder.join("order.json");
    write_whole(&order, output::json(hidden)?, PUBLIC)
        .with_context(|| format!("can't write {}", order.display()))?;
    let shown = hidden.iter().map(|hidden| &outcomes[hidden.pair]);
    let title = vec!["before and after, in the order of pairs.png".to_owned()];
    let revealed = contact_sheet(title, shown, SHEET_COLUMNS);
    picture::save(&revealed, &folder.join("revealed.png"))
}

/// Whether the adapter is one for the editor, before that is loaded.
fn check_adapter(adapter: &Path, model: &Path) -> Result<(), UsageError> {
    let layout = Layout::read(model)?;
    Ok(AdapterFile::open(adapter)?.check(&layout.projections)?)
}
