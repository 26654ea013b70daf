//! `retouch edit`: an image or several, one instruction, any adapter.

use std::path::{Path, PathBuf};

use ::image::RgbImage;
use anyhow::Context;
use clap::{
    Args, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use retouch_models::{
    device,
    editor::{EditRequest, Editor, ImageSize, NEGATIVE_PROMPT, Parts, SampleOptions, SourceSize},
    images,
    lora::load_adapter,
    noise,
    solver::Solver,
};
use retouch_proto::config::Dtype;

use crate::{exit::UsageError, output::say, picture};

/// Edits an image by one instruction.
#[derive(Debug, Args)]
pub(crate) struct EditArgs {
    /// The image to edit.
    source: PathBuf,
    /// What to do with it.
    prompt: String,
    /// A further source image, for base models that take several; may be repeated.
    #[arg(long)]
    image: Vec<PathBuf>,
    /// The edited image; its ending decides the format.
    #[arg(long, short)]
    output: PathBuf,
    /// The base editor: a diffusers folder.
    #[arg(long)]
    model: PathBuf,
    /// An adapter: a PEFT folder, such as runs/NAME/adapters/HASH, or diffusers' file.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Height of the result in pixels; the image's own, rounded down, if absent.
    #[arg(long)]
    height: Option<usize>,
    /// Width of the result in pixels; the image's own, rounded down, if absent.
    #[arg(long)]
    width: Option<usize>,
    /// What the source images are resized to; `result` for one, `own` for several, if absent.
    #[arg(long, value_enum)]
    source_size: Option<Sources>,
    /// Solver steps.
    #[arg(long, default_value_t = 28)]
    num_inference_steps: usize,
    /// The sampler: euler, ddim, dpm1 or dpm2.
    #[arg(long, default_value = "euler")]
    solver: Solver,
    /// Guidance that is given to the model as an input.
    #[arg(long, default_value_t = 3.5)]
    guidance_scale: f64,
    /// Classifier-free guidance, which takes twice the time; 1 is off.
    #[arg(long, default_value_t = 1.0)]
    true_cfg_scale: f64,
    /// What classifier-free guidance leads away from.
    #[arg(long, default_value = NEGATIVE_PROMPT)]
    negative_prompt: String,
    /// Prompt tokens, for base models that pad and cut their text.
    #[arg(long, default_value_t = 128)]
    max_sequence_length: usize,
    /// Decides the initial noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number type of the weights: f32 or bf16.
    #[arg(long, default_value = "f32", value_parser = PossibleValuesParser::new(Dtype::NAMES).try_map(|name| name.parse::<Dtype>()))]
    dtype: Dtype,
    /// Where to compute: `cpu` or `cuda:0`.
    #[arg(long, default_value = "cpu")]
    device: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Sources {
    /// The result's size, after cropping to its aspect; as in training.
    Result,
    /// Their own, cut to whole tokens.
    Own,
    /// What the base model's published pipeline does.
    Preferred,
}

impl From<Sources> for SourceSize {
    fn from(sources: Sources) -> Self {
        match sources {
            Sources::Result => Self::Result,
            Sources::Own => Self::Own,
            Sources::Preferred => Self::Preferred,
        }
    }
}

pub(crate) fn run(args: EditArgs) -> anyhow::Result<()> {
    let device = device::parse(&args.device)?;
    let sources = std::iter::once(&args.source).chain(&args.image);
    let sources: Vec<RgbImage> = sources.map(|path| open(path)).collect::<Result<_, _>>()?;
    let dtype = device::float_type(args.dtype);
    let editor = Editor::load_as(&args.model, &device, Parts::All, dtype);
    let editor = editor.map_err(UsageError::from)?;
    let adapter = args.adapter.as_deref();
    let adapter = adapter
        .map(|path| load_adapter(path, editor.projections(), &device))
        .transpose()
        .map_err(UsageError::from)?;
    let unit = editor.latent_format().unit();
    let round = |side: u32| side as usize / unit * unit;
    // The reference pipelines shape the result after the last source.
    let shown = sources.last().context("there is a source image")?;
    let size = ImageSize {
        height: args.height.unwrap_or_else(|| round(shown.height())),
        width: args.width.unwrap_or_else(|| round(shown.width())),
    };
    // Pictures of several things have several aspects: cropping them to one would lose what matters.
    let usual = match sources.len() {
        1 => Sources::Result,
        _ => Sources::Own,
    };
    let options = SampleOptions {
        num_inference_steps: args.num_inference_steps,
        solver: args.solver,
        guidance_scale: args.guidance_scale,
        true_cfg_scale: args.true_cfg_scale,
    };
    let condition = editor.encode_request(&EditRequest {
        prompt: &args.prompt,
        negative_prompt: options.negative_prompt().map(|_| &*args.negative_prompt),
        sources: &sources,
        source_size: args.source_size.unwrap_or(usual).into(),
        size,
        max_sequence_length: args.max_sequence_length,
    })?;
    let [tokens, channels] = editor.latent_shape(size);
    let noise = noise::normal(args.seed, [1, tokens, channels], &device);
    let x0 = editor.sample(&condition, noise, &options, adapter.as_ref())?;
    let images = editor.decode(x0, &condition)?;
    let edited = images.first().context("the editor gave no image")?;
    picture::save(edited, &args.output)?;
    say!("{} ({}x{})", args.output.display(), size.width, size.height);
    Ok(())
}

fn open(path: &Path) -> anyhow::Result<RgbImage> {
    images::open(path).with_context(|| format!("can't read the image {}", path.display()))
}
