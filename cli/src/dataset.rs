//! `retouch dataset`: makes the toy dataset, and checks any dataset before a run trusts it.

use std::path::{Path, PathBuf};

use crate::output::say;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use retouch_models::editor::{ImageSize, SizeRule};
use retouch_tiny::dataset::{Dataset, Row, Targets};

/// Images are only tried, so they are made small at once.
const THUMBNAIL: ImageSize = ImageSize {
    height: 8,
    width: 8,
};
/// Problems listed before the rest is only counted.
const PROBLEMS_SHOWN: usize = 20;

/// Makes or checks a dataset folder.
#[derive(Debug, Args)]
pub(crate) struct DatasetArgs {
    #[command(subcommand)]
    command: DatasetCommand,
}

#[derive(Debug, Subcommand)]
enum DatasetCommand {
    /// Generate the toy dataset: coloured shapes, eight kinds of instructions.
    Make(MakeArgs),
    /// Check a folder: every line parses, every image opens, nothing points outside.
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct MakeArgs {
    /// The folder to write.
    folder: PathBuf,
    /// Training pairs.
    #[arg(long, default_value_t = 1536)]
    train: u32,
    /// Held-out pairs.
    #[arg(long, default_value_t = 512)]
    test: u32,
    /// The seed that decides everything.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Also write the pictures asked for, as `sft` needs them.
    #[arg(long)]
    targets: bool,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The folder with train_metadata.jsonl, test_metadata.jsonl and the images.
    folder: PathBuf,
}

pub(crate) fn run(args: DatasetArgs) -> anyhow::Result<()> {
    match args.command {
        DatasetCommand::Make(args) => make(&args),
        DatasetCommand::Check(args) => check(&args.folder),
    }
}

fn make(args: &MakeArgs) -> anyhow::Result<()> {
    let targets = if args.targets {
        Targets::Written
    } else {
        Targets::Omitted
    };
    let dataset = Dataset {
        seed: args.seed,
        train: args.train,
        test: args.test,
        targets,
    };
    dataset.write(&args.folder)?;
    say!(
        "{} training and {} held-out pairs in {}",
        args.train,
        args.test,
        args.folder.display()
    );
    Ok(())
}

fn check(folder: &Path) -> anyhow::Result<()> {
    let mut problems = Vec::new();
    let mut found = Vec::new();
    for split in ["train", "test"] {
        let file = folder.join(format!("{split}_metadata.jsonl"));
        let rows = check_split(folder, &file, &mut problems)?;
        found.push(format!("{rows} {split}"));
    }
    if problems.is_empty() {
        say!(
            "{}: {} pairs, no problem",
            folder.display(),
            found.join(" and ")
        );
        return Ok(());
    }
    let hidden = problems.len().saturating_sub(PROBLEMS_SHOWN);
    let shown = problems[..problems.len() - hidden].join("\n");
    let rest = if hidden > 0 {
        format!("\nand {hidden} more")
    } else {
        String::new()
    };
    bail!(
        "{} problems in {}:\n{shown}{rest}",
        problems.len(),
        folder.display()
    )
}

/// Checks one metadata file and the images that it names; returns its number of rows.
fn check_split(folder: &Path, file: &Path, problems: &mut Vec<String>) -> anyhow::Result<usize> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
    for (index, line) in text.lines().enumerate() {
        if let Err(problem) = check_row(folder, line) {
            problems.push(format!("{}:{}: {problem}", file.display(), index + 1));
        }
    }
    Ok(text.lines().count())
}

fn check_row(folder: &Path, line: &str) -> anyhow::Result<()> {
    let row: Row = serde_json::from_str(line)?;
    if row.prompt.trim().is_empty() {
        bail!("the prompt is empty");
    }
    for image in [Some(&row.image), row.target.as_ref()]
        .into_iter()
        .flatten()
    {
        retouch_rollout_worker::source::load(folder, image, SizeRule::Fixed(THUMBNAIL))?;
    }
    Ok(())
}
