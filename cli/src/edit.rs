//! `retouch edit`: one image, one instruction, any adapter.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use retouch_models::{
    device,
    editor::{Editor, ImageSize, Parts, SampleOptions},
    lora::load_peft,
    noise,
    solver::Solver,
};

/// Edits one image by one instruction.
#[derive(Debug, Args)]
pub(crate) struct EditArgs {
    /// The image to edit.
    image: PathBuf,
    /// What to do with it.
    prompt: String,
    /// The edited image; its ending decides the format.
    #[arg(long, short)]
    output: PathBuf,
    /// The base editor: a diffusers folder.
    #[arg(long)]
    model: PathBuf,
    /// An adapter: a PEFT folder, such as runs/NAME/adapters/HASH.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Height of the result in pixels; the image's own, rounded down, if absent.
    #[arg(long)]
    height: Option<usize>,
    /// Width of the result in pixels; the image's own, rounded down, if absent.
    #[arg(long)]
    width: Option<usize>,
    /// Solver steps.
    #[arg(long, default_value_t = 28)]
    num_inference_steps: usize,
    /// The sampler: euler, ddim, dpm1 or dpm2.
    #[arg(long, default_value = "euler")]
    solver: Solver,
    /// Guidance that is given to the model as an input.
    #[arg(long, default_value_t = 3.5)]
    guidance_scale: f64,
    /// Prompt tokens.
    #[arg(long, default_value_t = 128)]
    max_sequence_length: usize,
    /// Decides the initial noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to compute: `cpu` or `cuda:0`.
    #[arg(long, default_value = "cpu")]
    device: String,
}

pub(crate) fn run(args: EditArgs) -> anyhow::Result<()> {
    let device = device::parse(&args.device)?;
    let source = retouch_models::images::open(&args.image)
        .with_context(|| format!("can't read the image {}", args.image.display()))?;
    let editor = Editor::load(&args.model, &device, Parts::All)?;
    let adapter = args.adapter.as_deref();
    let adapter = adapter
        .map(|folder| load_peft(folder, editor.projections(), &device))
        .transpose()?;
    let unit = editor.latent_format().unit();
    let round = |side: u32| side as usize / unit * unit;
    let size = ImageSize {
        height: args.height.unwrap_or_else(|| round(source.height())),
        width: args.width.unwrap_or_else(|| round(source.width())),
    };
    let condition = editor.encode(&args.prompt, &source, size, args.max_sequence_length)?;
    let [tokens, channels] = editor.latent_shape(size);
    let noise = noise::normal(args.seed, [1, tokens, channels], &device);
    let options = SampleOptions {
        num_inference_steps: args.num_inference_steps,
        solver: args.solver,
        guidance_scale: args.guidance_scale,
    };
    let x0 = editor.sample(&condition, noise, &options, adapter.as_ref());
    let images = editor.decode(x0, &condition)?;
    let edited = images.first().context("the editor gave no image")?;
    edited
        .save(&args.output)
        .with_context(|| format!("can't write {}", args.output.display()))?;
    println!("{} ({}x{})", args.output.display(), size.width, size.height);
    Ok(())
}
