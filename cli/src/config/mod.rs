//! Run files: the arguments that name one, and `retouch config`.

mod commented;
mod keys;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueHint};
use retouch_dataset::{Counts, SourcesLimit};
use retouch_models::{
    device::cards,
    editor::Layout,
    hub,
    inspect::{FolderKind, inspect},
    weights::LoadError,
};
use retouch_proto::{
    RunConfig,
    config::{Problem, load, load_on_node, schema},
    limits::SOURCES_MAX,
};
use serde::Serialize;

use crate::dataset::{Images, check_rows};
use crate::exit::UsageError;
use crate::initial;
use crate::output::{self, print_json, say};

/// A run file and what is set over it.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigArgs {
    /// The run file.
    #[arg(value_name = "RUN_FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    #[command(flatten)]
    set: SetArgs,
}

/// What is set over a run file.
#[derive(Debug, Clone, Args)]
pub(crate) struct SetArgs {
    /// Set one field over the run file, such as `learner.learning_rate=1e-4`; may be given often.
    #[arg(long = "set", value_name = "KEY=VALUE", add = keys::completer())]
    pub(crate) sets: Vec<String>,
}

impl ConfigArgs {
    /// Resolves all layers; an error lists every problem with file, line, key and value.
    pub(crate) fn load(&self) -> anyhow::Result<RunConfig> {
        Ok(load(Some(&self.file), std::env::vars(), &self.set.sets)
            .map_err(|errors| UsageError(errors.to_string()))?)
    }

    /// What gives another process the same.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = OsString> {
        let sets = self
            .set
            .sets
            .iter()
            .flat_map(|set| ["--set".into(), set.into()]);
        std::iter::once(self.file.clone().into_os_string()).chain(sets)
    }

    /// The same for a run on this machine, whose cards stand for `cuda:*`.
    pub(crate) fn load_here(&self) -> anyhow::Result<RunConfig> {
        let cards = || {
            cards::cards()
                .map(|cards| cards.len())
                .map_err(|error| error.to_string())
        };
        Ok(
            load_on_node(Some(&self.file), std::env::vars(), &self.set.sets, cards)
                .map_err(|errors| UsageError(errors.to_string()))?,
        )
    }
}

/// Check a run file, show it resolved, or print its schema.
///
/// Examples:
///
///   retouch config show > run.toml                every field with its default and its meaning
///   retouch config show run.toml --set seed=1     what a run file comes to
///   retouch config schema > retouch.schema.json   for editors: with the line
///                                                 `#:schema ./retouch.schema.json` at its head, a run
///                                                 file is completed and checked while it is written
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ConfigCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Check every field, that the files it names are there, that the editor has the layers of [lora] target_modules, and
    /// every row and image of the dataset.
    Check(CheckArgs),
    /// Print the resolved run file, every field with its meaning: defaults, preset, file, environment and --set.
    Show(ShowArgs),
    /// Print the JSON schema of run files, from which editors complete and check them (taplo, Even Better TOML).
    Schema,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print the result as JSON: `problems`, each with its origin, key and text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The run file; without one, defaults, environment and --set are shown.
    #[arg(value_name = "RUN_FILE", value_hint = ValueHint::FilePath)]
    file: Option<PathBuf>,
    #[command(flatten)]
    set: SetArgs,
    /// Print the values alone, as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(command: ConfigCommand) -> anyhow::Result<()> {
    match command.action {
        Action::Check(args) => check_file(&args),
        Action::Show(args) => {
            let config = load(args.file.as_deref(), std::env::vars(), &args.set.sets);
            let config = config.map_err(|errors| UsageError(errors.to_string()))?;
            match args.json {
                true => print_json(&config),
                false => {
                    output::print(commented::text(&config));
                    Ok(())
                }
            }
        }
        Action::Schema => print_json(&schema()),
    }
}

/// What `config check --json` prints.
#[derive(Debug, Serialize)]
struct Checked {
    problems: Vec<Problem>,
}

fn check_file(args: &CheckArgs) -> anyhow::Result<()> {
    let file = &args.config.file;
    let loaded = load(Some(file), std::env::vars(), &args.config.set.sets);
    let problems = match &loaded {
        Ok(config) => run_problems(config, config.evaluation.pairs, Images::Decoded).0,
        Err(errors) => errors.problems().to_vec(),
    };
    if args.json {
        print_json(&Checked {
            problems: problems.clone(),
        })?;
    }
    if let Err(errors) = loaded {
        return Err(UsageError(errors.to_string()).into());
    }
    refuse(&problems)?;
    if !args.json {
        say!("{}: no problem", file.display());
    }
    Ok(())
}

/// Checks that the files a run needs are there, its models such as can be loaded, as far as their headers tell, its
/// training rows sound, and as many held-out rows there as will be asked for, so that it fails before any process is
/// started.
pub(crate) fn check_files(
    config: &RunConfig,
    held_out_pairs: u32,
    images: Images,
) -> anyhow::Result<()> {
    refuse(&file_problems(config, held_out_pairs, images).0)
}

/// As [`check_files`], of a run that is to begin or go on: the adapter that it starts from is looked at too. How many
/// sources a row has is counted where the run file does not say it: from then on every node can plan for them.
pub(crate) fn check_run(
    config: &mut RunConfig,
    held_out_pairs: u32,
    images: Images,
) -> anyhow::Result<()> {
    let (problems, counts) = run_problems(config, held_out_pairs, images);
    refuse(&problems)?;
    if let Some(counts) = counts {
        set_sources_max(config, counts);
    }
    Ok(())
}

/// Counts the sources of a run's rows, as far as they can be read here: for plans of memory, which nothing waits for.
pub(crate) fn count_sources(config: &mut RunConfig) {
    let dataset = Path::new(&config.dataset.path);
    if config.dataset.sources_max == 0
        && let Ok(rows) = retouch_dataset::check(dataset, 0, |_| Ok(()))
    {
        set_sources_max(config, rows);
    }
}

fn set_sources_max(config: &mut RunConfig, rows: Counts) {
    if config.dataset.sources_max == 0 {
        config.dataset.sources_max = rows.sources_max.try_into().unwrap_or(u32::MAX);
    }
}

fn run_problems(
    config: &RunConfig,
    held_out_pairs: u32,
    images: Images,
) -> (Vec<Problem>, Option<Counts>) {
    let (mut problems, counts) = file_problems(config, held_out_pairs, images);
    problems.extend(initial::problem(config));
    (problems, counts)
}

/// What is wrong with a run's files, and what its dataset has.
fn file_problems(
    config: &RunConfig,
    held_out_pairs: u32,
    images: Images,
) -> (Vec<Problem>, Option<Counts>) {
    let dataset = Path::new(&config.dataset.path);
    let mut needed = vec![model_file(config)];
    needed.extend(judge_files(config));
    let mut problems = missing(&needed);
    if problems.is_empty() {
        problems = misfits(config);
    }
    let layout = Layout::read(config.model.path.as_ref());
    let limit = match (layout.ok(), config.dataset.sources_max as usize) {
        (Some(layout), 0) => SourcesLimit::Model(layout.sources_max),
        (Some(layout), planned) if planned > layout.sources_max => {
            let takes = SourcesLimit::Model(layout.sources_max);
            problems.push(problem(
                "dataset.sources_max",
                format!("{planned}, {takes}"),
            ));
            takes
        }
        (None, 0) => SourcesLimit::Model(SOURCES_MAX),
        (_, planned) => SourcesLimit::Run(planned),
    };
    let checked = check_rows(dataset, held_out_pairs as usize, limit, images);
    if let Err(error) = &checked {
        problems.push(problem("dataset.path", error));
    }
    (problems, checked.ok())
}

/// What is wrong with the files of a key.
fn problem(key: &str, problem: impl ToString) -> Problem {
    Problem {
        origin: String::new(),
        key: key.to_owned(),
        problem: problem.to_string(),
    }
}

/// What keeps the run's models from being loaded.
fn misfits(config: &RunConfig) -> Vec<Problem> {
    let judges = config.reward.terms.iter().map(|term| &term.path);
    // Several terms may ask one judge.
    let judges: BTreeSet<&String> = judges.collect();
    let mut problems = misfit("model.path", &config.model.path, FolderKind::Editor);
    let judges = judges.into_iter();
    if problems.is_empty()
        && let Err(error) = check_targets(config)
    {
        problems.push(problem("lora.target_modules", error));
    }
    problems.extend(judges.flat_map(|path| misfit("reward.terms.path", path, FolderKind::Judge)));
    problems
}

fn misfit(key: &str, path: &str, kind: FolderKind) -> Vec<Problem> {
    match inspect(path.as_ref()) {
        Err(error) => vec![problem(key, error)],
        Ok(found) if found.kind != kind => {
            let found = format!("{path} holds {}, expected {kind}", found.kind);
            vec![problem(key, found)]
        }
        Ok(found) => found
            .all_problems()
            .map(|found| problem(key, found))
            .collect(),
    }
}

/// Checks that the adapter's targets are layers of the editor, whose configuration is read and nothing else.
pub(crate) fn check_targets(config: &RunConfig) -> Result<(), UsageError> {
    let folder = Path::new(&config.model.path);
    Ok(Layout::check_targets(folder, &config.lora.adapter)?)
}

/// A key of the run file and a file or folder that must be there because of it; or why it can't be.
pub(crate) type Needed = (&'static str, Result<PathBuf, LoadError>);

/// What shows that the editor is there.
pub(crate) fn model_file(config: &RunConfig) -> Needed {
    (
        "model.path",
        in_model(&config.model.path, "model_index.json"),
    )
}

/// The folder of the source images.
pub(crate) fn dataset_folder(config: &RunConfig) -> Needed {
    ("dataset.path", Ok(PathBuf::from(&config.dataset.path)))
}

/// What shows that the judges are there.
pub(crate) fn judge_files(config: &RunConfig) -> Vec<Needed> {
    let terms = config.reward.terms.iter();
    terms
        .map(|term| ("reward.terms.path", in_model(&term.path, "config.json")))
        .collect()
}

fn in_model(path: &str, file: &str) -> Result<PathBuf, LoadError> {
    Ok(hub::locate(path.as_ref())?.join(file))
}

/// Checks that all of these are there; the error names those that are not.
pub(crate) fn check(needed: &[Needed]) -> anyhow::Result<()> {
    refuse(&missing(needed))
}

fn missing(needed: &[Needed]) -> Vec<Problem> {
    let missing = needed.iter().filter_map(|(key, file)| match file {
        Err(error) => Some(problem(key, error)),
        Ok(file) => {
            (!file.exists()).then(|| problem(key, format!("{} is missing", file.display())))
        }
    });
    missing.collect()
}

fn refuse(problems: &[Problem]) -> anyhow::Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    Err(UsageError(lines.join("\n")).into())
}
