//! `retouch evaluate`: the base against an adapter on held-out pairs, by judge and, where targets are known, by oracle.

use std::path::PathBuf;

use clap::Args;

use crate::{
    config::{ConfigArgs, check_files},
    dataset::Images,
    heldout, output,
};

/// Compares an adapter with its base on held-out pairs, as the report of a run does.
#[derive(Debug, Args)]
pub(crate) struct EvaluateArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The adapter: a PEFT folder.
    #[arg(long)]
    adapter: PathBuf,
    /// Print the numbers as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: EvaluateArgs) -> anyhow::Result<()> {
    let config = args.config.load()?;
    check_files(&config, config.evaluation.pairs, Images::Named)?;
    let (heldout, _) = heldout::evaluate(&config, &args.adapter)?;
    output::result(match args.json {
        true => output::json(&heldout)?,
        false => heldout::text(&heldout) + "\n",
    })
}
