//! `retouch edit`: an image or several, one instruction, any adapter.

use std::path::{Path, PathBuf};

use ::image::RgbImage;
use anyhow::Context;
use burn::tensor::Device;
use clap::{
    Args, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use retouch_coordinator::store::Reader;
use retouch_learner::card::{SAMPLING_FILE, Sampling};
use retouch_models::{
    device,
    editor::{
        EditError, EditRequest, Editor, ImageSize, Layout, NEGATIVE_PROMPT, Parts, SampleOptions,
        SourceSize,
    },
    images,
    lora::{LoraAdapter, load_adapter},
    noise,
    solver::Solver,
};
use retouch_proto::{RunFolder, config::Dtype};

use crate::{
    control::{recorded_config, run_folders},
    exit::UsageError,
    number,
    output::say,
    picture,
};

/// Edit an image by one instruction.
///
/// An adapter's folder says how it was sampled when it was measured (sampling.json); what is not
/// given here is taken from there.
///
/// Examples:
///
///   retouch edit in.png "make the car red" --run runs/quickstart --output out.png
///   retouch edit in.png "make the car red" --model MODEL --adapter ADAPTER --output out.png
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
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
    /// The base editor: a diffusers folder, or a model's id on the Hugging Face Hub that `hf download` has fetched.
    #[arg(long, required_unless_present = "run")]
    model: Option<PathBuf>,
    /// The folder of a run: edit with its base and its newest adapter.
    #[arg(long, value_name = "RUN_FOLDER", conflicts_with_all = ["model", "adapter"], add = run_folders())]
    run: Option<PathBuf>,
    /// A LoRA adapter: a PEFT folder, such as runs/NAME/adapters/latest, or a safetensors file as diffusers, ComfyUI,
    /// ai-toolkit, kohya, OneTrainer, XLabs or DiffSynth write it.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// What the adapter's update is multiplied by: 0 is the base alone.
    #[arg(long, default_value_t = 1.0, value_parser = number::finite, allow_hyphen_values = true)]
    lora_scale: f64,
    /// Height of the result in pixels; the image's own, rounded down, if absent.
    #[arg(long, value_parser = number::within(1..=8192usize), allow_hyphen_values = true)]
    height: Option<usize>,
    /// Width of the result in pixels; the image's own, rounded down, if absent.
    #[arg(long, value_parser = number::within(1..=8192usize), allow_hyphen_values = true)]
    width: Option<usize>,
    /// What the source images are resized to; `result` for one, `own` for several, if absent.
    #[arg(long, value_enum)]
    source_size: Option<Sources>,
    /// Solver steps; 28 if neither this nor the adapter says.
    #[arg(long, value_parser = number::within(1..=1000usize), allow_hyphen_values = true)]
    num_inference_steps: Option<usize>,
    /// The sampler: euler, ddim, dpm1 or dpm2; euler if neither this nor the adapter says.
    #[arg(long)]
    solver: Option<Solver>,
    /// Guidance that is given to the model as an input; 3.5 if neither this nor the adapter says.
    #[arg(long, value_parser = number::within(0.0..=100.0), allow_hyphen_values = true)]
    guidance_scale: Option<f64>,
    /// Classifier-free guidance, which takes twice the time; 1, which is off, if neither this nor the adapter says.
    #[arg(long, value_parser = number::within(1.0..=100.0), allow_hyphen_values = true)]
    true_cfg_scale: Option<f64>,
    /// What classifier-free guidance leads away from.
    #[arg(long, default_value = NEGATIVE_PROMPT)]
    negative_prompt: String,
    /// Prompt tokens, for base models that pad and cut their text; 128 if neither this nor the adapter says.
    #[arg(long, value_parser = number::within(1..=4096usize), allow_hyphen_values = true)]
    max_sequence_length: Option<usize>,
    /// Decides the initial noise.
    #[arg(long, default_value_t = 0, value_parser = number::within(0..=u64::MAX), allow_hyphen_values = true)]
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

impl EditArgs {
    fn sources(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.source).chain(&self.image)
    }

    /// Checks what can be known before anything is loaded.
    fn check(&self, layout: &Layout) -> Result<(), UsageError> {
        picture::check(&self.output)?;
        let unit = layout.latent_format.unit();
        for (option, side) in [("--height", self.height), ("--width", self.width)] {
            side.map_or(Ok(()), |side| number::check_multiple(option, side, unit))?;
        }
        let found = self.sources().count();
        if found > layout.sources_max {
            let error = EditError::Sources {
                found,
                class: layout.class,
                sources_max: layout.sources_max,
            };
            return Err(UsageError(error.to_string()));
        }
        Ok(())
    }

    /// How to sample: as the options say, else as the adapter's folder does.
    fn settings(&self, adapter: Option<&Path>) -> Result<(SampleOptions, usize), UsageError> {
        let known = adapter.map_or(Ok(Sampling::default()), |folder| {
            let unread =
                |error| UsageError(format!("{}: {error}", folder.join(SAMPLING_FILE).display()));
            Sampling::read(folder).map_err(unread)
        })?;
        let options = SampleOptions {
            num_inference_steps: self
                .num_inference_steps
                .or(known.num_inference_steps)
                .unwrap_or(28),
            solver: self.solver.or(known.solver).unwrap_or(Solver::Euler),
            guidance_scale: self.guidance_scale.or(known.guidance_scale).unwrap_or(3.5),
            true_cfg_scale: self.true_cfg_scale.or(known.true_cfg_scale).unwrap_or(1.0),
        };
        let length = self.max_sequence_length.or(known.max_sequence_length);
        Ok((options, length.unwrap_or(128)))
    }
}

/// What is edited with.
struct Policy {
    model: PathBuf,
    adapter: Option<PathBuf>,
}

impl Policy {
    fn of(args: &EditArgs) -> anyhow::Result<Self> {
        if let Some(folder) = &args.run {
            return Self::of_run(&RunFolder::new(folder));
        }
        let model = args
            .model
            .clone()
            .context("clap asks for a model or a run")?;
        Ok(Self {
            model,
            adapter: args.adapter.clone(),
        })
    }

    fn of_run(folder: &RunFolder) -> anyhow::Result<Self> {
        let config = recorded_config(folder)?;
        let newest = Reader::open(folder.path())?.newest_adapter()?;
        let (_, hash) = newest.ok_or_else(|| {
            let folder = folder.path().display();
            UsageError(format!(
                "{folder}: the run has no adapter yet; `retouch checkpoint {folder}` makes one now"
            ))
        })?;
        Ok(Self {
            model: config.model.path.into(),
            adapter: Some(folder.adapter(&hash.to_string())),
        })
    }

    /// The adapter, read before the editor, which may take minutes to load.
    fn load_adapter(
        &self,
        scale: f64,
        layout: &Layout,
        device: &Device,
    ) -> Result<Option<LoraAdapter>, UsageError> {
        let Some(path) = &self.adapter else {
            return Ok(None);
        };
        let adapter = load_adapter(path, &layout.projections, device)?;
        Ok(Some(adapter.scaled(scale)))
    }
}

pub(crate) fn run(args: EditArgs) -> anyhow::Result<()> {
    let policy = Policy::of(&args)?;
    let layout = Layout::read(&policy.model).map_err(UsageError::from)?;
    args.check(&layout)?;
    let (options, max_sequence_length) = args.settings(policy.adapter.as_deref())?;
    let sources = args.sources().map(|path| open(path));
    let sources: Vec<RgbImage> = sources.collect::<Result<_, _>>()?;
    let device = device::parse(&args.device)?;
    let adapter = policy.load_adapter(args.lora_scale, &layout, &device)?;
    let dtype = device::float_type(args.dtype);
    let editor = Editor::load_as(&policy.model, &device, Parts::All, dtype);
    let editor = editor.map_err(UsageError::from)?;
    let unit = editor.latent_format().unit();
    let round = |side: u32| side as usize / unit * unit;
    // The reference pipelines shape the result after the last source.
    let shown = sources.last().context("there is a source image")?;
    let size = ImageSize {
        height: args.height.unwrap_or_else(|| round(shown.height())),
        width: args.width.unwrap_or_else(|| round(shown.width())),
    };
    let source_size = args.source_size.map(SourceSize::from);
    let condition = editor.encode_request(&EditRequest {
        prompt: &args.prompt,
        negative_prompt: options.negative_prompt().map(|_| &*args.negative_prompt),
        sources: &sources,
        source_size: source_size.unwrap_or(SourceSize::usual(sources.len())),
        size,
        max_sequence_length,
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
    let image = images::open(path);
    Ok(image.map_err(|error| UsageError(format!("image {}: {error}", path.display())))?)
}
