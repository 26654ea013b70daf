//! Qwen-Image: the transformer, the autoencoder on single frames, and the edit pipeline.

use anyhow::{Context, bail};
use burn::tensor::Device;
use image::RgbImage;
use retouch_models::autoencoder_kl_qwen_image::AutoencoderKlQwenImage;
use retouch_models::editor::{
    Base, EditRequest, Editor, ImageSize, NEGATIVE_PROMPT, Parts, QwenImageEdit, SampleOptions,
    SourceSize, TextPositions,
};
use retouch_models::qwen_image::{ImageShape, QwenImageInput, QwenImageTransformer};
use retouch_models::weights::Pretrained;

use super::qwen_vl::image;
use crate::case::Case;
use crate::compare::{Outputs, compare};

pub(crate) fn transformer(case: &Case, device: &Device) -> anyhow::Result<Outputs> {
    let model = QwenImageTransformer::load_as(case.model_folder()?.path(), device, case.dtype)?;
    let sample = model.forward(input(case, device)?, None);
    Ok(Outputs::default().float("out.sample", sample))
}

fn input(case: &Case, device: &Device) -> anyhow::Result<QwenImageInput> {
    Ok(QwenImageInput {
        hidden_states: case.narrow_input("hidden_states", device)?,
        encoder_hidden_states: case.narrow_input("encoder_hidden_states", device)?,
        encoder_hidden_states_mask: case
            .has_input("encoder_hidden_states_mask")
            .then(|| text_mask(case))
            .transpose()?,
        timestep: case.input("timestep", device)?,
        img_shapes: img_shapes(case)?,
    })
}

fn text_mask(case: &Case) -> anyhow::Result<Vec<bool>> {
    let mask = case.values("encoder_hidden_states_mask")?;
    Ok(mask.iter().map(|real| *real != 0.0).collect())
}

/// The images of the first row, which the reference takes for all.
fn img_shapes(case: &Case) -> anyhow::Result<Vec<ImageShape>> {
    let [_, images, _] = case.dims("img_shapes")?;
    let sides: Vec<usize> = case.integers("img_shapes")?;
    let shape = |sides: &[usize]| ImageShape {
        frames: sides[0],
        height: sides[1],
        width: sides[2],
    };
    Ok(sides.chunks_exact(3).take(images).map(shape).collect())
}

pub(crate) fn autoencoder(case: &Case, device: &Device) -> anyhow::Result<Outputs> {
    let vae = AutoencoderKlQwenImage::load_as(case.model_folder()?.path(), device, case.dtype)?;
    let frame = |name| Ok::<_, anyhow::Error>(case.narrow_input::<5>(name, device)?.squeeze_dim(2));
    let (moments, decoded) = (vae.encode(frame("pixels")?), vae.decode(frame("latents")?));
    Ok(Outputs::default()
        .float("out.moments", moments.unsqueeze_dim::<5>(2))
        .float("out.decoded", decoded.unsqueeze_dim::<5>(2)))
}

/// A case that does not say how its text encoder took the positions of images was made by diffusers with either
/// release of transformers, 4 or 5: it must agree with one of the two.
pub(crate) fn pipeline(case: &Case, device: &Device) -> anyhow::Result<Outputs> {
    if case.has("text_positions") {
        return run(case, device, positions(case.text("text_positions")?)?);
    }
    let outputs = run(case, device, TextPositions::Multimodal)?;
    if compare(case, &outputs).is_ok() {
        return Ok(outputs);
    }
    let others = run(case, device, TextPositions::Sequential)?;
    let agree = compare(case, &others).is_ok();
    Ok(if agree { others } else { outputs })
}

fn positions(name: &str) -> anyhow::Result<TextPositions> {
    match name {
        "multimodal" => Ok(TextPositions::Multimodal),
        "sequential" => Ok(TextPositions::Sequential),
        other => bail!("text_positions is {other:?}, expected \"multimodal\" or \"sequential\""),
    }
}

fn run(case: &Case, device: &Device, text_positions: TextPositions) -> anyhow::Result<Outputs> {
    let mut editor = Editor::load_as(&case.path("pipeline"), device, Parts::All, case.dtype)?;
    let Base::QwenImageEdit(base) = &mut editor.base else {
        bail!("the pipeline is a {}", editor.class());
    };
    let encoders = base.encoders.as_mut().context("all parts were loaded")?;
    encoders.text_positions = text_positions;
    set_areas(case, base)?;
    let options = options(case)?;
    let negative_prompt = match case.has("negative_prompt") {
        true => case.text("negative_prompt")?,
        false => NEGATIVE_PROMPT,
    };
    let condition = editor.encode_request(&EditRequest {
        prompt: case.text("prompt")?,
        negative_prompt: options.negative_prompt().map(|_| negative_prompt),
        sources: &sources(case)?,
        source_size: SourceSize::Preferred,
        size: size(case, &editor)?,
        max_sequence_length: 0,
    })?;
    let latents = editor.sample(&condition, case.input("latents", device)?, &options, None)?;
    let pixels = editor.decode_pixels(latents.clone(), &condition)?;
    Ok(Outputs::default()
        .float("out.latents", latents)
        .float("out.image", pixels.squeeze_dim::<3>(0).permute([1, 2, 0])))
}

fn set_areas(case: &Case, base: &mut QwenImageEdit) -> anyhow::Result<()> {
    if case.has("condition_image_area") {
        base.pipeline.areas.condition = case.count("condition_image_area")?;
    }
    if case.has("source_image_area") {
        base.pipeline.areas.source = case.count("source_image_area")?;
    }
    Ok(())
}

fn options(case: &Case) -> anyhow::Result<SampleOptions> {
    let solver = match case.has("solver") {
        true => case.text("solver")?,
        false => "euler",
    };
    Ok(SampleOptions {
        num_inference_steps: case.count("num_inference_steps")?,
        solver: solver.parse()?,
        guidance_scale: 1.0,
        true_cfg_scale: case.number("true_cfg_scale")?,
    })
}

/// The size asked for, cut to whole tokens as the pipeline does.
fn size(case: &Case, editor: &Editor) -> anyhow::Result<ImageSize> {
    let unit = editor.latent_format().unit();
    Ok(ImageSize {
        height: case.count("height")? / unit * unit,
        width: case.count("width")? / unit * unit,
    })
}

/// `image.0`, `image.1` and so on.
fn sources(case: &Case) -> anyhow::Result<Vec<RgbImage>> {
    let name = |index: usize| format!("image.{index}");
    let count = (0..)
        .take_while(|index| case.has_input(&name(*index)))
        .count();
    (0..count).map(|index| image(case, &name(index))).collect()
}
