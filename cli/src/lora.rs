//! `retouch lora`: adapters from one format to another, and into the weights of their base.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use clap::{
    Args, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use retouch_models::{
    editor::{Layout, merge_pipeline},
    lora::{AdapterFile, AdapterFormat},
};
use serde_json::{Value, json};

use crate::{destination, exit::UsageError, number, output};

/// Converts LoRA adapters and merges them.
#[derive(Debug, Args)]
pub(crate) struct LoraArgs {
    #[command(subcommand)]
    command: LoraCommand,
}

#[derive(Debug, Subcommand)]
enum LoraCommand {
    /// Write an adapter in another format; its factors, ranks and alphas stay as they are.
    ///
    /// Reads what `edit --adapter` reads: a PEFT folder, or a safetensors file as diffusers, ComfyUI,
    /// ai-toolkit, kohya, OneTrainer, XLabs or DiffSynth write it.
    ///
    /// Examples:
    ///
    ///   retouch lora convert style.safetensors --to peft --output style-peft
    ///   retouch lora convert kohya.safetensors --model MODEL --to diffusers --output for-diffusers
    #[command(verbatim_doc_comment)]
    Convert(ConvertArgs),
    /// Write a copy of a base editor with an adapter added to its weights.
    ///
    /// The copy needs no adapter and edits as the base does with it, up to the rounding of the
    /// weights' number type. Element types and shards stay as the base has them.
    ///
    /// Example:
    ///
    ///   retouch lora merge runs/first/adapters/final --model MODEL --output models/first
    ///   retouch edit photo.png "make it rain" --model models/first --output rain.png
    #[command(verbatim_doc_comment)]
    Merge(MergeArgs),
}

#[derive(Debug, Args)]
struct ConvertArgs {
    /// The adapter.
    adapter: PathBuf,
    /// The format to write: peft or diffusers.
    #[arg(long, value_parser = PossibleValuesParser::new(AdapterFormat::NAMES).try_map(|name| name.parse::<AdapterFormat>()))]
    to: AdapterFormat,
    /// The folder to write, which is not there yet.
    #[arg(long, short)]
    output: PathBuf,
    /// The base editor that it is for, a diffusers folder: checks that it fits. Names without dots, as kohya writes them
    /// for other models than FLUX, need it.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct MergeArgs {
    /// The adapter.
    adapter: PathBuf,
    /// The base editor: a diffusers folder.
    #[arg(long)]
    model: PathBuf,
    /// The folder to write, which is not there yet.
    #[arg(long, short)]
    output: PathBuf,
    /// What the adapter's update is multiplied by.
    #[arg(long, default_value_t = 1.0, value_parser = number::finite, allow_hyphen_values = true)]
    lora_scale: f64,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: LoraArgs) -> anyhow::Result<()> {
    match args.command {
        LoraCommand::Convert(args) => convert(&args),
        LoraCommand::Merge(args) => merge(&args),
    }
}

fn convert(args: &ConvertArgs) -> anyhow::Result<()> {
    destination::check_new_folder(&args.output)?;
    let adapter = AdapterFile::open(&args.adapter).map_err(UsageError::from)?;
    let (from, layers) = (adapter.format(), adapter.len());
    named(adapter, args.model.as_deref())?.save(&args.output, args.to)?;
    report(
        args.json,
        json!({
            "output": args.output,
            "from": from,
            "to": args.to,
            "layers": layers,
        }),
        format_args!(
            "{} ({}, {layers} layers, read as {from})",
            args.output.display(),
            args.to
        ),
    )
}

/// The adapter with the names that the model has, if there is one to ask.
fn named(adapter: AdapterFile, model: Option<&Path>) -> Result<AdapterFile, UsageError> {
    match model {
        Some(model) => Ok(adapter.named(&Layout::read(model)?.projections)?),
        None if adapter.needs_model() => Err(UsageError(format!(
            "{}: the names of its layers, as {} writes them, have underscores for dots, and only their model tells \
             which those are: name it with --model FOLDER",
            adapter.path().display(),
            adapter.format(),
        ))),
        None => Ok(adapter),
    }
}

fn merge(args: &MergeArgs) -> anyhow::Result<()> {
    destination::check_new_folder(&args.output)?;
    let layout = Layout::read(&args.model).map_err(UsageError::from)?;
    let file = AdapterFile::open(&args.adapter).map_err(UsageError::from)?;
    let (from, layers) = (file.format(), file.len());
    let adapter = file.load(&layout.projections, &Device::flex());
    let adapter = adapter.map_err(UsageError::from)?.scaled(args.lora_scale);
    merge_pipeline(&args.model, &adapter, &args.output)?;
    report(
        args.json,
        json!({
            "output": args.output,
            "model": args.model,
            "from": from,
            "layers": layers,
            "lora_scale": args.lora_scale,
        }),
        format_args!(
            "{} ({} with {layers} layers changed)",
            args.output.display(),
            layout.class
        ),
    )
}

/// Prints what was written, for programs or for people.
fn report(json: bool, value: Value, line: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    match json {
        true => output::print_json(&value)?,
        false => output::say!("{line}"),
    }
    Ok(())
}
