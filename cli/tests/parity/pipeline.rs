//! The edit pipeline, from an instruction and an image to an image.

use burn::tensor::Device;
use retouch_models::editor::{Editor, ImageSize, Parts, SampleOptions, SourceSize, output_size};

use super::qwen_vl::image;
use crate::case::Case;
use crate::compare::Outputs;

pub(crate) fn kontext_pipeline(case: &Case) -> anyhow::Result<Outputs> {
    let device = Device::flex();
    let editor = Editor::load(&case.path("pipeline"), &device, Parts::All)?;
    let asked = ImageSize {
        height: case.count("height")?,
        width: case.count("width")?,
    };
    let size = output_size(
        asked,
        case.count("max_area")?,
        editor.latent_format().unit(),
    );
    let condition = editor.encode_with(
        case.text("prompt")?,
        &image(case, "image")?,
        size,
        case.count("max_sequence_length")?,
        if case.flag("auto_resize")? {
            SourceSize::Preferred
        } else {
            SourceSize::Own
        },
    )?;
    let options = SampleOptions {
        num_inference_steps: case.count("num_inference_steps")?,
        solver: case.text("solver")?.parse()?,
        guidance_scale: case.number("guidance_scale")?,
    };
    let latents = editor.sample(&condition, case.input("latents", &device)?, &options, None);
    let pixels = editor.decode_pixels(latents.clone(), &condition)?;
    Ok(Outputs::default()
        .float("out.latents", latents)
        .float("out.image", pixels.squeeze_dim::<3>(0).permute([1, 2, 0])))
}
