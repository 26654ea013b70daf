//! `retouch evaluate`: the base against an adapter on held-out pairs, by judge and, where targets are known, by oracle.

use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use retouch_models::{editor::Layout, lora::AdapterFile};

use crate::{
    config::{ConfigArgs, check_files},
    dataset::Images,
    exit::UsageError,
    heldout,
    meter::Lines,
    output,
};

/// Compares an adapter with its base on held-out pairs, as the report of a run does.
#[derive(Debug, Args)]
pub(crate) struct EvaluateArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The adapter: a PEFT folder, or a file of another program, as `edit` takes them.
    #[arg(long, value_hint = ValueHint::AnyPath)]
    adapter: PathBuf,
    /// Print the numbers as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: EvaluateArgs) -> anyhow::Result<()> {
    let config = args.config.load()?;
    check_files(&config, config.evaluation.pairs, Images::Named)?;
    check_adapter(&args.adapter, Path::new(&config.model.path))?;
    if config.evaluation.pairs == 0 {
        let problem = "evaluation.pairs is 0, which leaves nothing to evaluate: give 1 or more";
        return Err(UsageError(problem.to_owned()).into());
    }
    // Standard output is for the result.
    let meter = heldout::meter(&config, Lines::Error);
    let (heldout, _) = heldout::evaluate(&config, &args.adapter, &meter)?;
    output::result(match args.json {
        true => output::json(&heldout)?,
        false => heldout::text(&heldout) + "\n",
    })
}

/// Whether the adapter is one for the editor, before that is loaded.
fn check_adapter(adapter: &Path, model: &Path) -> Result<(), UsageError> {
    let layout = Layout::read(model)?;
    Ok(AdapterFile::open(adapter)?.check(&layout.projections)?)
}
