//! `retouch dataset`: makes the toy dataset, and checks any dataset before a run trusts it.

use std::path::{Path, PathBuf};

use crate::output::say;

use clap::{Args, Subcommand};
use retouch_dataset::{Row, Split, both};
use retouch_models::images;
use retouch_tiny::dataset::{Dataset, Targets};

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
    /// Check a folder: every line is a row that a run accepts, every image decodes.
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

/// Reads both splits as a run does, and decodes every image besides.
fn check(folder: &Path) -> anyhow::Result<()> {
    let rows = |split| retouch_dataset::read_with(folder, split, |row| decode(folder, &row));
    let (train, test) = both(rows(Split::Train), rows(Split::Test))?;
    say!(
        "{}: {} train and {} test pairs, no problem",
        folder.display(),
        train.len(),
        test.len()
    );
    Ok(())
}

fn decode(folder: &Path, row: &Row) -> Result<(), String> {
    for (key, path) in row.images() {
        images::open(&folder.join(path)).map_err(|error| format!("{key} {path:?}: {error}"))?;
    }
    Ok(())
}
