//! `retouch model`: what a model folder holds, needs and computes, without loading it.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use retouch_learner::workload::workload;
use retouch_models::{
    device::cards,
    editor::Layout,
    inspect::{Component, Estimate, FolderKind, Inspection, Role, estimate, inspect},
};
use retouch_proto::{
    RunConfig,
    config::{DeviceName, load},
};
use serde_json::json;

use crate::{
    config::{SetArgs, count_sources},
    estimate::print_estimate,
    exit::UsageError,
    output::{self, remark},
    role_name::RoleName,
    show::size,
};

/// Checks model folders.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    #[command(subcommand)]
    command: ModelCommand,
}

#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// Read the headers of a folder's weights: its parts, what does not fit, and each role's memory and arithmetic.
    ///
    /// Memory is that of the device: a card's, or this machine's where a role computes on the CPU.
    ///
    /// Examples:
    ///
    ///   retouch model check models/FLUX.1-Kontext-dev --run run.toml
    ///   retouch model check models/FLUX.1-Kontext-dev --gpu-memory 80GiB --set model.height=1024
    ///   retouch model check Qwen/Qwen2.5-VL-32B-Instruct --device cuda:0
    #[command(verbatim_doc_comment)]
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// A base editor (diffusers' layout) or a judge (transformers' layout): a folder, or a model's id on the Hugging Face
    /// Hub that `hf download` has fetched.
    folder: PathBuf,
    /// The memory and arithmetic of this role only.
    #[arg(long, value_enum)]
    role: Option<RoleName>,
    /// The run file that says how much is done at once; its defaults if absent.
    #[arg(long, value_name = "RUN_FILE", value_hint = ValueHint::FilePath)]
    run: Option<PathBuf>,
    #[command(flatten)]
    set: SetArgs,
    /// Plan for this device, not the run file's, and say whether it has room: `cuda:0`, or `cpu`, which is not asked.
    #[arg(long)]
    device: Option<DeviceName>,
    /// Say whether each role has room on a card with so much memory, such as `80GiB`; none has to be there.
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    gpu_memory: Option<u64>,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: ModelArgs) -> anyhow::Result<()> {
    let ModelCommand::Check(args) = args.command;
    check(&args)
}

fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let mut config = load(args.run.as_deref(), std::env::vars(), &args.set.sets)
        .map_err(|errors| UsageError(errors.to_string()))?;
    let inspection = inspect(&args.folder).map_err(UsageError::from)?;
    // Nobody asked for the default ones.
    let named_run = args.run.is_some() || !args.set.sets.is_empty();
    if named_run {
        count_sources(&mut config);
    }
    let targets = named_run.then(|| targets(&inspection, &config)).flatten();
    let problems = inspection.all_problems().chain(targets.as_deref());
    let problems: Vec<&str> = problems.collect();
    // A folder whose configurations can't be read has no sizes to add up.
    let estimates = match problems.is_empty() {
        true => estimates(&inspection, args, &config)?,
        false => Vec::new(),
    };
    let card_bytes = card_bytes(args)?;
    let problems: Vec<String> = problems
        .into_iter()
        .map(str::to_owned)
        .chain(
            estimates
                .iter()
                .filter_map(|estimate| too_large(estimate, card_bytes?)),
        )
        .collect();
    if args.json {
        let value = json!({
            "inspection": inspection,
            "problems": problems,
            "memory": estimates,
            "card_bytes": card_bytes,
        });
        output::result(format_args!("{value:#}\n"))?;
    } else {
        print_parts(&inspection);
        for estimate in &estimates {
            print_estimate(estimate);
            if let Some(there) = card_bytes.filter(|there| *there >= estimate.bytes) {
                remark!("{} fits into {}", estimate.role, size(there));
            }
        }
        let warnings = inspection.warnings.iter();
        warnings.for_each(|warning| remark!("warning: {warning}"));
        problems
            .iter()
            .for_each(|problem| remark!("problem: {problem}"));
    }
    match problems.len() {
        0 => Ok(()),
        count => Err(UsageError(format!("{}: {count} problem(s)", args.folder.display())).into()),
    }
}

/// Whether the run's adapter has layers that a sound editor lacks.
fn targets(inspection: &Inspection, config: &RunConfig) -> Option<String> {
    let is_sound = inspection.all_problems().next().is_none();
    let is_editor = inspection.kind == FolderKind::Editor;
    let check = || Layout::check_targets(&inspection.folder, &config.lora.adapter);
    let checked = (is_sound && is_editor).then(check)?;
    checked.err().map(|error| error.to_string())
}

/// The memory of the card that is asked about, if one is.
fn card_bytes(args: &CheckArgs) -> Result<Option<u64>, UsageError> {
    let Some(index) = args.device.and_then(DeviceName::card) else {
        return Ok(args.gpu_memory);
    };
    if args.gpu_memory.is_some() {
        return Ok(args.gpu_memory);
    }
    let cards = cards::cards().map_err(|error| {
        UsageError(format!(
            "--device cuda:{index}: {error}; --gpu-memory asks for none"
        ))
    })?;
    match cards.iter().find(|card| card.index == index) {
        Some(card) => Ok(Some(card.total_bytes)),
        None => Err(UsageError(format!(
            "--device cuda:{index}: this machine has {}, counted from cuda:0",
            cards.len()
        ))),
    }
}

fn too_large(estimate: &Estimate, card_bytes: u64) -> Option<String> {
    let Estimate { role, bytes, .. } = estimate;
    (*bytes > card_bytes).then(|| {
        format!(
            "the {role} does not fit: {} needed, {} there",
            size(*bytes),
            size(card_bytes)
        )
    })
}

/// `80GiB`, `81559MiB` or `80GB`.
fn memory_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size, expected one such as 80GiB");
    let number = text.trim_end_matches(char::is_alphabetic);
    let unit = match &text[number.len()..] {
        "GiB" => 1u64 << 30,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    match number.is_finite() && number > 0.0 {
        true => Ok((number * unit as f64) as u64),
        false => Err(wrong()),
    }
}

fn estimates(
    inspection: &Inspection,
    args: &CheckArgs,
    config: &RunConfig,
) -> anyhow::Result<Vec<Estimate>> {
    let role = args.role.map(Role::from);
    let fitting = Role::ALL
        .into_iter()
        .filter(|role| role.needs() == inspection.kind);
    let roles: Vec<Role> = role.map_or_else(|| fitting.collect(), |role| vec![role]);
    let estimates = roles.into_iter().map(|role| {
        let mut workload = workload(config, role);
        workload.device = match (args.device, args.gpu_memory) {
            (Some(device), _) => device,
            (None, Some(_)) => DeviceName::Cuda(0),
            (None, None) => workload.device,
        };
        Ok(estimate(inspection, role, &workload).map_err(UsageError::from)?)
    });
    estimates.collect()
}

fn print_parts(inspection: &Inspection) {
    let Inspection {
        folder,
        kind,
        class,
        ..
    } = inspection;
    remark!("{}: {kind}, {class}", folder.display());
    inspection.components.iter().for_each(print_part);
}

fn print_part(part: &Component) {
    let Component {
        name,
        class,
        tensors,
        problems,
    } = part;
    let state = if problems.is_empty() {
        "ok"
    } else {
        "does not fit"
    };
    let tensors = tensors.as_ref().map_or(String::new(), |tensors| {
        let stored = tensors
            .stored
            .iter()
            .map(|(dtype, bytes)| format!("{dtype} {}", size(*bytes)));
        let stored = stored.collect::<Vec<_>>().join(", ");
        format!(
            "  {} tensors, {} parameters, {stored}",
            tensors.count, tensors.parameters
        )
    });
    remark!("  {name:<16} {class}{tensors}  {state}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(memory_size("80GiB"), Ok(80 << 30));
        assert_eq!(memory_size("81559 MiB"), Ok(81_559 << 20));
        assert_eq!(memory_size("1.5GB"), Ok(1_500_000_000));
        for text in ["80", "GiB", "-1GiB", "0GiB", "infGiB", "80 TiB", ""] {
            assert!(memory_size(text).is_err(), "{text}");
        }
    }
}
