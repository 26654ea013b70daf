//! Held-out evaluation: the base against an adapter, from the same noise, by judge and oracle.
//!
//! The oracle knows the targets and is used nowhere else.

mod outcome;

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;
use retouch_dataset::{Row, Split, read_held_out};
use retouch_models::{
    device,
    editor::{
        Condition, EditRequest, Editor, ImageSize, Parts, SampleOptions, SizeRule, SourceSize,
    },
    lora::{LoraAdapter, load_adapter},
    noise,
};
use retouch_proto::{
    RunConfig,
    seed::{Purpose, derive},
};
use retouch_reward_worker::scorer::{Group, Scorer};
use retouch_rollout_worker::source::{self, size_rule};
use retouch_tiny::{dataset::read_cases, edit::Case, oracle::Oracle};

pub(crate) use self::outcome::{PairOutcome, Scored};
use crate::output::say;
use crate::{config::ConfigArgs, report::HeldOut};

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
    crate::config::check_files(&config, config.evaluation.pairs)?;
    let evaluation = Evaluation::of_run(&config, &args.adapter)?;
    let heldout = evaluation.summarise(&evaluation.run()?);
    if args.json {
        say!("{}", serde_json::to_string_pretty(&heldout)?);
    } else {
        crate::report::print_heldout(&heldout);
    }
    Ok(())
}

/// Everything that one evaluation needs, loaded.
pub(crate) struct Evaluation {
    editor: Editor,
    adapter: LoraAdapter,
    scorer: Scorer,
    pairs: Vec<Pair>,
    options: SampleOptions,
    max_sequence_length: usize,
    seed: u64,
}

/// A held-out pair; `case` is there in datasets whose targets are known.
struct Pair {
    row: Row,
    source: image::RgbImage,
    case: Option<Case>,
}

impl Evaluation {
    /// The evaluation that a run file describes, for the adapter in `folder`.
    pub(crate) fn of_run(config: &RunConfig, adapter: &Path) -> anyhow::Result<Self> {
        let device = device::parse(&config.model.device)?;
        let dtype = device::float_type(config.model.dtype);
        let editor = Editor::load_as(Path::new(&config.model.path), &device, Parts::All, dtype)?;
        let adapter = load_adapter(adapter, editor.projections(), &device)?;
        let scorer = Scorer::load(&config.reward, &device::parse(&config.reward.device)?)?;
        Ok(Self {
            editor,
            adapter,
            scorer,
            pairs: read_pairs(
                Path::new(&config.dataset.path),
                config.evaluation.pairs as usize,
                size_rule(&config.model),
            )?,
            options: SampleOptions {
                num_inference_steps: config.evaluation.num_inference_steps as usize,
                solver: config.evaluation.solver,
                guidance_scale: config.evaluation.guidance_scale,
                true_cfg_scale: config.evaluation.true_cfg_scale,
            },
            max_sequence_length: config.model.max_sequence_length as usize,
            seed: config.seed,
        })
    }

    /// Edits every pair before and after, on all cores; outcomes are in the dataset's order.
    pub(crate) fn run(&self) -> anyhow::Result<Vec<PairOutcome>> {
        let bar = ProgressBar::new(self.pairs.len() as u64).with_prefix("evaluating");
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::with_capacity(self.pairs.len()));
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(pair) = self.pairs.get(index) else {
                    return;
                };
                let outcome = self.outcome(index, pair);
                bar.inc(1);
                done.lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .push((index, outcome));
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(work);
            }
        });
        bar.finish_and_clear();
        let mut done = done
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, outcome)| outcome).collect()
    }

    pub(crate) fn summarise(&self, outcomes: &[PairOutcome]) -> HeldOut {
        let options = &self.options;
        let mut sampling = format!(
            "{} with {} steps, guidance {}",
            options.solver, options.num_inference_steps, options.guidance_scale
        );
        if options.true_cfg_scale > 1.0 {
            sampling += &format!(", true CFG {}", options.true_cfg_scale);
        }
        outcome::summarise(outcomes, sampling)
    }

    fn outcome(&self, index: usize, pair: &Pair) -> anyhow::Result<PairOutcome> {
        let Pair { row, source, case } = pair;
        let condition = self.editor.encode_request(&EditRequest {
            prompt: &row.prompt,
            negative_prompt: self.options.negative_prompt(),
            sources: std::slice::from_ref(source),
            source_size: SourceSize::Result,
            size: ImageSize::of(source),
            max_sequence_length: self.max_sequence_length,
        })?;
        let edits = [None, Some(&self.adapter)]
            .into_iter()
            .map(|adapter| self.edit(index, &condition, adapter))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let group = Group {
            prompt: row.prompt.clone(),
            requirement: row.requirement.clone(),
            source: source.clone(),
            edits,
        };
        let scores = self.scorer.score(&group)?;
        let oracle = case.as_ref().map(Oracle::new);
        let mut scored = group
            .edits
            .into_iter()
            .zip(scores)
            .map(|(image, score)| Scored {
                oracle: oracle.as_ref().map(|oracle| oracle.score(&image)),
                judge: score.reward,
                image,
            });
        let (Some(before), Some(after)) = (scored.next(), scored.next()) else {
            bail!("the judge scored fewer edits than it was given");
        };
        Ok(PairOutcome {
            prompt: row.prompt.clone(),
            task: task_name(pair),
            source: source.clone(),
            before,
            after,
        })
    }

    /// The noise depends on the pair alone: before and after start alike.
    fn edit(
        &self,
        index: usize,
        condition: &Condition,
        adapter: Option<&LoraAdapter>,
    ) -> anyhow::Result<image::RgbImage> {
        let [tokens, channels] = self.editor.latent_shape(condition.size);
        let seed = derive(self.seed, Purpose::EvaluationNoise, 0, index as u32, 0, 0);
        let noise = noise::normal(seed, [1, tokens, channels], self.editor.device());
        let x0 = self
            .editor
            .sample(condition, noise, &self.options, adapter)?;
        self.editor
            .decode(x0, condition)?
            .pop()
            .context("the editor gave no image")
    }
}

/// The task kind where it is known, else the requirement: pairs of one kind share it.
fn task_name(pair: &Pair) -> String {
    match &pair.case {
        Some(case) => case.kind.name().to_owned(),
        None => pair.row.requirement.clone(),
    }
}

/// The first `count` held-out pairs with their images, and their cases where the dataset has them.
fn read_pairs(folder: &Path, count: usize, rule: SizeRule) -> anyhow::Result<Vec<Pair>> {
    let rows = read_held_out(folder, count)?;
    let cases = if folder.join("oracle").is_dir() {
        read_cases(folder, Split::Test)?
    } else {
        Vec::new()
    };
    let mut cases = cases.into_iter().map(Some).chain(std::iter::repeat(None));
    rows.into_iter()
        .map(|row| {
            let source = source::load(folder, &row.image, rule)?;
            Ok(Pair {
                row,
                source,
                case: cases.next().flatten(),
            })
        })
        .collect()
}
