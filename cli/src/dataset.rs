//! `retouch dataset`: makes the toy dataset or one of parquet shards, and checks any dataset before a run trusts it.

mod import;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use retouch_dataset::{Counts, DatasetError, SourcesLimit};
use retouch_models::images;
use retouch_proto::limits::SOURCES_MAX;
use retouch_tiny::dataset::{Dataset, Targets};
use serde::Serialize;

use crate::{
    destination,
    exit::UsageError,
    number,
    output::{print_json, say},
};

/// Most pairs of a split that are made.
const PAIRS_MAX: u32 = 10_000_000;

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
    Import(import::ImportArgs),
    /// Check a folder: every line is a row that a run accepts, every image decodes.
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct MakeArgs {
    /// The folder to write.
    folder: PathBuf,
    /// Training pairs.
    #[arg(long, default_value_t = 1536, value_parser = number::within(0..=PAIRS_MAX), allow_hyphen_values = true)]
    train: u32,
    /// Held-out pairs.
    #[arg(long, default_value_t = 512, value_parser = number::within(0..=PAIRS_MAX), allow_hyphen_values = true)]
    test: u32,
    /// The seed that decides everything.
    #[arg(long, default_value_t = 0, value_parser = number::within(0..=u64::MAX), allow_hyphen_values = true)]
    seed: u64,
    /// Also write the pictures asked for, as `sft` needs them.
    #[arg(long)]
    targets: bool,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The folder with train_metadata.jsonl, test_metadata.jsonl and the images.
    folder: PathBuf,
    /// Print the result as JSON: the numbers of `train` and `test` rows and the most
    /// source images of one, `sources_max`, or the first `problems` and their `count`.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: DatasetArgs) -> anyhow::Result<()> {
    match args.command {
        DatasetCommand::Make(args) => make(&args),
        DatasetCommand::Import(args) => import::run(args),
        DatasetCommand::Check(args) => check(&args),
    }
}

fn make(args: &MakeArgs) -> anyhow::Result<()> {
    destination::check_folder(&args.folder)?;
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

/// Reads both splits as a run does, with every image.
fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let limit = SourcesLimit::Model(SOURCES_MAX);
    let checked = check_rows(&args.folder, 1, limit, Images::Decoded);
    if args.json {
        print_json(&Checked::of(&checked))?;
    }
    let Counts { train, test, .. } = checked.map_err(UsageError::from)?;
    if !args.json {
        let folder = args.folder.display();
        say!("{folder}: {train} train and {test} test pairs, no problem");
    }
    Ok(())
}

/// What `dataset check --json` prints.
#[derive(Debug, Serialize)]
struct Checked<'a> {
    #[serde(flatten)]
    counts: Option<Counts>,
    problems: &'a [String],
    count: usize,
}

impl<'a> Checked<'a> {
    fn of(checked: &'a Result<Counts, DatasetError>) -> Self {
        let error = checked.as_ref().err();
        Self {
            counts: checked.as_ref().ok().copied(),
            problems: error.map_or(&[], DatasetError::shown),
            count: error.map_or(0, DatasetError::count),
        }
    }
}

/// How far a check of a dataset looks at its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Images {
    /// The files that the rows name are there.
    Named,
    /// They are also whole images of a size that can be edited.
    Decoded,
}

/// Judges a dataset for every command: at least one training row and so many held-out ones, all sound and of no more
/// sources than are taken.
pub(crate) fn check_rows(
    folder: &Path,
    held_out_min: usize,
    limit: SourcesLimit,
    images: Images,
) -> Result<Counts, DatasetError> {
    if images == Images::Named {
        return retouch_dataset::check(folder, held_out_min, |row| row.check_limit(limit));
    }
    let style = ProgressStyle::with_template("checking images of {pos} rows ({elapsed})");
    let bar = ProgressBar::no_length().with_style(style.expect("a sound template"));
    let checked = retouch_dataset::check(folder, held_out_min, |row| {
        bar.inc(1);
        row.check_limit(limit)?;
        row.check_images(|path| images::open(&folder.join(path)).map(drop))
    });
    bar.finish_and_clear();
    checked
}
