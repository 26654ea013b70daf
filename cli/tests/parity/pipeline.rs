//! The edit pipeline, from an instruction and an image to an image.

use burn::tensor::Device;
use retouch_models::editor::{
    EditRequest, Editor, ImageSize, Parts, SampleOptions, SourceSize, output_size,
};

use super::qwen_vl::image;
use crate::case::Case;
use crate::compare::Outputs;

pub(crate) fn kontext_pipeline(case: &Case, device: &Device) -> anyhow::Result<Outputs> {
    let editor = Editor::load_as(&case.path("pipeline"), device, Parts::All, case.dtype)?;
    let asked = ImageSize {
        height: case.count("height")?,
        width: case.count("width")?,
    };
    let size = output_size(
        asked,
        case.count("max_area")?,
        editor.latent_format().unit(),
    );
    let condition = editor.encode_request(&EditRequest {
        prompt: case.text("prompt")?,
        negative_prompt: None,
        sources: &[image(case, "image")?],
        source_size: if case.flag("auto_resize")? {
            SourceSize::Preferred
        } else {
            SourceSize::Own
        },
        size,
        max_sequence_length: case.count("max_sequence_length")?,
    })?;
    let options = SampleOptions {
        num_inference_steps: case.count("num_inference_steps")?,
        solver: case.text("solver")?.parse()?,
        guidance_scale: case.number("guidance_scale")?,
        true_cfg_scale: 1.0,
    };
    let latents = editor.sample(&condition, case.input("latents", device)?, &options, None)?;
    let pixels = editor.decode_pixels(latents.clone(), &condition)?;
    Ok(Outputs::default()
        .float("out.latents", latents)
        .float("out.image", pixels.squeeze_dim::<3>(0).permute([1, 2, 0])))
}
