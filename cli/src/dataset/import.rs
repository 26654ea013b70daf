//! `retouch dataset import`: parquet shards of the Hugging Face Hub as a dataset folder.

use std::path::PathBuf;

use clap::Args;

/// Make a dataset folder of parquet shards, as the Hugging Face Hub serves datasets.
///
/// Images are written as the files that they are. Columns are found by their usual names (prompt or
/// instruction; image, source_image or input_image; target, target_image or edited_image), or
/// named. Shards called test or validation are held out.
///
/// Example:
///
///   hf download ORG/NAME --repo-type dataset --local-dir shards
///   retouch dataset import shards data --prompt edit_instruction --held-out 128
///   retouch launch run.toml --set dataset.path=data
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ImportArgs {
    /// A parquet file, or a folder of them.
    source: PathBuf,
    /// The folder to make.
    folder: PathBuf,
    /// The column of the instruction.
    #[arg(long, value_name = "COLUMN")]
    prompt: Option<String>,
    /// The column of the source image, or of a list of them; may be repeated where they have columns of their own.
    #[arg(long, value_name = "COLUMN")]
    image: Vec<String>,
    /// The column of the image asked for, which `sft` needs.
    #[arg(long, value_name = "COLUMN")]
    target: Option<String>,
    /// The column of what the judge looks for.
    #[arg(long, value_name = "COLUMN")]
    requirement: Option<String>,
    /// Where no shard is held out, hold out so many of the first rows.
    #[arg(long, value_name = "ROWS", default_value_t = 64)]
    held_out: usize,
    /// Leave out rows that can't be used, instead of refusing all.
    #[arg(long)]
    skip_broken: bool,
}

#[cfg(not(feature = "parquet"))]
pub(super) fn run(args: ImportArgs) -> anyhow::Result<()> {
    let source = args.source.display();
    let problem = "this build of retouch reads no parquet files; `cargo build --release --features parquet` makes one that does";
    Err(crate::exit::UsageError(format!("{source}: {problem}")).into())
}

#[cfg(feature = "parquet")]
pub(super) fn run(args: ImportArgs) -> anyhow::Result<()> {
    use indicatif::{ProgressBar, ProgressStyle};
    use retouch_dataset::import::{Columns, Import};
    use retouch_models::images;

    use crate::{destination, exit::UsageError, output::say};

    destination::check_new_folder(&args.folder)?;
    let style = ProgressStyle::with_template("importing, {pos} rows ({elapsed})");
    let bar = ProgressBar::no_length().with_style(style.expect("a sound template"));
    let import = Import {
        source: &args.source,
        folder: &args.folder,
        columns: Columns {
            prompt: args.prompt,
            images: args.image,
            target: args.target,
            requirement: args.requirement,
        },
        held_out: args.held_out,
        skip_broken: args.skip_broken,
        check_image: &|bytes| {
            let image = images::from_bytes(bytes).map(drop);
            image.map_err(|error| error.to_string())
        },
        observe: &|| bar.inc(1),
    };
    let imported = import.run();
    bar.finish_and_clear();
    let imported = imported.map_err(|error| UsageError(error.to_string()))?;
    let skipped = match imported.skipped {
        0 => String::new(),
        skipped => format!(", {skipped} rows left out"),
    };
    let folder = args.folder.display();
    say!(
        "{folder}: {} train and {} test pairs{skipped}",
        imported.train,
        imported.test
    );
    Ok(())
}
