//! `retouch sft`: supervised fine-tuning by flow matching, of a LoRA or of all parameters.

use std::{ops::ControlFlow, path::PathBuf};

use clap::{Args, ValueEnum, ValueHint};
use retouch_learner::{
    adamw::AdamWConfig,
    sft::{
        Decay, LearningRate, LogitNormal, SftError, SftOptions, SftProgress, Start, TextEncoders,
        Trained, train,
    },
};
use retouch_models::{device, editor::Layout, lora::LoraConfig};

use crate::{
    destination,
    exit::UsageError,
    meter::{Always, Lines, Meter},
    number,
    output::remark,
};

/// Train an editor by supervision: flow matching on pairs with targets, rows with a "target" column.
///
/// With lora.init = "OUTPUT/adapter" in its run file, a run of reinforcement learning begins from
/// the adapter.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct SftArgs {
    /// The base editor: a diffusers folder, or a model's id on the Hugging Face Hub that `hf download` has fetched.
    #[arg(long, value_hint = ValueHint::DirPath)]
    model: PathBuf,
    /// The dataset: train_metadata.jsonl with prompt, image, target; test_metadata.jsonl is held out.
    #[arg(long, value_hint = ValueHint::DirPath)]
    dataset: PathBuf,
    /// Where the result, the log and the checkpoints go; the same command goes on from the last checkpoint.
    #[arg(long, value_hint = ValueHint::DirPath)]
    output: PathBuf,
    /// What is trained.
    #[arg(long, value_enum, default_value_t = What::Lora)]
    train: What,
    /// With --train full: train the text encoders too.
    #[arg(long)]
    text_encoders: bool,
    /// LoRA rank.
    #[arg(long, default_value_t = 32, value_parser = number::within(1..=4096usize), allow_hyphen_values = true)]
    lora_rank: usize,
    /// LoRA alpha: the update is scaled by alpha / rank.
    #[arg(long, default_value_t = 64.0, value_parser = number::within(1e-6..=1e6), allow_hyphen_values = true)]
    lora_alpha: f64,
    /// Height of the training images in pixels.
    #[arg(long, default_value_t = 512, value_parser = number::within(1..=8192usize), allow_hyphen_values = true)]
    height: usize,
    /// Width of the training images in pixels.
    #[arg(long, default_value_t = 512, value_parser = number::within(1..=8192usize), allow_hyphen_values = true)]
    width: usize,
    /// Prompt tokens.
    #[arg(long, default_value_t = 128, value_parser = number::within(1..=4096usize), allow_hyphen_values = true)]
    max_sequence_length: usize,
    /// Guidance that the model is given.
    #[arg(long, default_value_t = 2.5, value_parser = number::within(0.0..=100.0), allow_hyphen_values = true)]
    guidance_scale: f64,
    /// Optimizer updates.
    #[arg(long, default_value_t = 1000, value_parser = number::within(1..=u64::MAX), allow_hyphen_values = true)]
    steps: u64,
    /// Rows per update.
    #[arg(long, default_value_t = 32, value_parser = number::within(1..=1_000_000usize), allow_hyphen_values = true)]
    batch_size: usize,
    /// Most rows in one forward pass.
    #[arg(long, default_value_t = 8, value_parser = number::within(1..=4096usize), allow_hyphen_values = true)]
    micro_batch_size: usize,
    /// AdamW's step size.
    #[arg(long, default_value_t = 1e-4, value_parser = number::within(1e-12..=1.0), allow_hyphen_values = true)]
    learning_rate: f64,
    /// Steps until the full learning rate is reached.
    #[arg(long, default_value_t = 50, value_parser = number::within(0..=1_000_000u64), allow_hyphen_values = true)]
    warmup_steps: u64,
    /// What the learning rate does then: constant or cosine.
    #[arg(long, default_value = "constant")]
    decay: Decay,
    /// Gradients are clipped to this norm.
    #[arg(long, default_value_t = 1.0, value_parser = number::within(1e-12..=1e12), allow_hyphen_values = true)]
    max_grad_norm: f64,
    /// Limit of the EMA's decay; the EMA is what is saved.
    #[arg(long, default_value_t = 0.99, value_parser = number::within(0.0..=0.999_999), allow_hyphen_values = true)]
    ema_decay_max: f64,
    /// Decides initialisation, order and noise.
    #[arg(long, default_value_t = 0, value_parser = number::within(0..=u64::MAX), allow_hyphen_values = true)]
    seed: u64,
    /// Held-out rows that the loss is measured on.
    #[arg(long, default_value_t = 64, value_parser = number::within(0..=1_000_000usize), allow_hyphen_values = true)]
    validation_rows: usize,
    /// Updates between two measurements.
    #[arg(long, default_value_t = 100, value_parser = number::within(1..=u64::MAX), allow_hyphen_values = true)]
    validate_every: u64,
    /// Updates between two checkpoints.
    #[arg(long, default_value_t = 100, value_parser = number::within(1..=u64::MAX), allow_hyphen_values = true)]
    checkpoint_every: u64,
    /// Where to compute: `cpu` or `cuda:0`.
    #[arg(long, default_value = "cpu")]
    device: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// An adapter on the transformer's attention.
    Lora,
    /// All parameters, from the base's weights.
    Full,
    /// All parameters, from random ones of the base's configuration.
    Scratch,
}

pub(crate) fn run(args: SftArgs) -> anyhow::Result<()> {
    destination::check_folder(&args.output)?;
    let layout = Layout::read(&args.model).map_err(UsageError::from)?;
    let unit = layout.latent_format.unit();
    number::check_multiple("--height", args.height, unit)?;
    number::check_multiple("--width", args.width, unit)?;
    let options = options(&args)?;
    let mut shown = Shown {
        encoding: None,
        training: None,
    };
    let outcome = train(&options, &mut |progress| shown.show(progress)).map_err(usage)?;
    shown.finish();
    let loss = outcome
        .validation_loss
        .map_or(String::new(), |loss| format!(", held-out loss {loss:.4}"));
    remark!(
        "{} parameters trained{loss}: {}",
        outcome.parameters,
        outcome.folder.display()
    );
    Ok(())
}

/// What is wrong with the base, the data or an option will be wrong the next time too.
fn usage(error: SftError) -> anyhow::Error {
    match error {
        SftError::Dataset(_)
        | SftError::Image { .. }
        | SftError::Option { .. }
        | SftError::Model(_) => UsageError(error.to_string()).into(),
        error => error.into(),
    }
}

fn options(args: &SftArgs) -> anyhow::Result<SftOptions> {
    Ok(SftOptions {
        base: args.model.clone(),
        dataset: args.dataset.clone(),
        output: args.output.clone(),
        trained: trained(args),
        height: args.height,
        width: args.width,
        max_sequence_length: args.max_sequence_length,
        guidance_scale: args.guidance_scale,
        steps: args.steps,
        batch_size: args.batch_size,
        micro_batch_size: args.micro_batch_size,
        adamw: AdamWConfig {
            learning_rate: args.learning_rate,
            ..AdamWConfig::default()
        },
        learning_rate: LearningRate {
            warmup_steps: args.warmup_steps,
            decay: args.decay,
        },
        max_grad_norm: args.max_grad_norm,
        ema_decay_max: args.ema_decay_max,
        noise_levels: LogitNormal::default(),
        seed: args.seed,
        device: device::parse(&args.device)?,
        validation_rows: args.validation_rows,
        validate_every: args.validate_every,
        checkpoint_every: args.checkpoint_every,
    })
}

fn trained(args: &SftArgs) -> Trained {
    let text_encoders = if args.text_encoders {
        TextEncoders::Trained
    } else {
        TextEncoders::Frozen
    };
    match args.train {
        What::Lora => Trained::Lora(LoraConfig {
            rank: args.lora_rank,
            alpha: args.lora_alpha,
            ..LoraConfig::default()
        }),
        What::Full => Trained::Full {
            start: Start::Weights,
            text_encoders,
        },
        What::Scratch => Trained::Full {
            start: Start::Random,
            text_encoders,
        },
    }
}

/// Its two parts, each with a meter of its own.
struct Shown {
    encoding: Option<Meter>,
    training: Option<Meter>,
}

impl Shown {
    fn show(&mut self, progress: SftProgress) -> ControlFlow<()> {
        match progress {
            SftProgress::Encoding { done, total } => {
                let new = || Meter::new("encoding", "rows", total as u64, Lines::Output);
                let meter = self.encoding.get_or_insert_with(new);
                meter.set(done as u64, "", Always::NowAndThen);
            }
            SftProgress::Step { entry, steps } => {
                if let Some(encoding) = self.encoding.take() {
                    encoding.finish();
                }
                let new = || Meter::new("training", "steps", steps, Lines::Output);
                let held_out = entry
                    .validation_loss
                    .map_or(String::new(), |loss| format!("  held-out {loss:.4}"));
                let line = format!(
                    "loss {:.4}  grad {:.3}{held_out}  {:.2} s",
                    entry.loss, entry.grad_norm, entry.seconds
                );
                let always = match entry.validation_loss {
                    Some(_) => Always::Line,
                    None => Always::NowAndThen,
                };
                self.training
                    .get_or_insert_with(new)
                    .set(entry.step, &line, always);
            }
        }
        ControlFlow::Continue(())
    }

    fn finish(&self) {
        self.training.iter().for_each(Meter::finish);
    }
}
