//! The text encoders T5 and CLIP.

use burn::tensor::Device;
use retouch_models::clip::ClipText;
use retouch_models::t5::T5Encoder;
use retouch_models::weights::Pretrained;

use crate::case::Case;
use crate::compare::Outputs;

pub(crate) fn t5_encoder(case: &Case, device: &Device) -> anyhow::Result<Outputs> {
    let encoder = T5Encoder::load_as(case.model_folder()?.path(), device, case.dtype)?;
    let mask = case
        .has_input("attention_mask")
        .then(|| case.ids("attention_mask", device));
    let hidden = encoder.forward(case.ids("input_ids", device)?, mask.transpose()?);
    Ok(Outputs::default().float("out.last_hidden_state", hidden))
}

pub(crate) fn clip_text(case: &Case, device: &Device) -> anyhow::Result<Outputs> {
    let encoder = ClipText::load_as(case.model_folder()?.path(), device, case.dtype)?;
    let output = encoder.forward(case.ids("input_ids", device)?);
    Ok(Outputs::default()
        .float("out.last_hidden_state", output.last_hidden_state)
        .float("out.pooler_output", output.pooler_output))
}
