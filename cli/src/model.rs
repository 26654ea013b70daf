//! `retouch model`: what a model folder holds, needs and computes, without loading it.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use retouch_learner::workload::workload;
use retouch_models::inspect::{Component, Estimate, Inspection, Role, estimate, inspect};
use retouch_proto::{RunConfig, config::load};
use serde_json::json;

use crate::{
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
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// A base editor (diffusers' layout) or a judge (transformers' layout).
    folder: PathBuf,
    /// The memory and arithmetic of this role only.
    #[arg(long, value_enum)]
    role: Option<RoleName>,
    /// The run file that says how much is done at once; its defaults if absent.
    #[arg(long, value_name = "RUN_FILE")]
    run: Option<PathBuf>,
    /// Set one field over the run file, such as `model.dtype=f32`; may be given often.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: ModelArgs) -> anyhow::Result<()> {
    let ModelCommand::Check(args) = args.command;
    check(&args)
}

fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let config = load(args.run.as_deref(), std::env::vars(), &args.sets)
        .map_err(|errors| UsageError(errors.to_string()))?;
    let inspection = inspect(&args.folder).map_err(UsageError::from)?;
    let problems: Vec<&str> = inspection.all_problems().collect();
    // A folder whose configurations can't be read has no sizes to add up.
    let estimates = match problems.is_empty() {
        true => estimates(&inspection, args.role.map(Role::from), &config)?,
        false => Vec::new(),
    };
    if args.json {
        let value = json!({"inspection": inspection, "problems": problems, "memory": estimates});
        output::result(format_args!("{value:#}\n"))?;
    } else {
        print_parts(&inspection);
        estimates.iter().for_each(print_estimate);
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

fn estimates(
    inspection: &Inspection,
    role: Option<Role>,
    config: &RunConfig,
) -> anyhow::Result<Vec<Estimate>> {
    let fitting = Role::ALL
        .into_iter()
        .filter(|role| role.needs() == inspection.kind);
    let roles: Vec<Role> = role.map_or_else(|| fitting.collect(), |role| vec![role]);
    let estimates = roles.into_iter().map(|role| {
        let workload = workload(config, role);
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
