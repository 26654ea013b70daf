//! The FLUX transformer, alone and under an adapter of peft's.

use burn::tensor::Device;
use retouch_models::dit::Transformer;
use retouch_models::flux::{FluxInput, FluxTransformer};
use retouch_models::lora;
use retouch_models::weights::Pretrained;

use crate::case::Case;
use crate::compare::Outputs;

pub(crate) fn transformer(case: &Case, device: &Device) -> anyhow::Result<Outputs> {
    let sample = load(case, device)?.forward(input(case, device)?, None);
    Ok(Outputs::default().float("out.sample", sample))
}

pub(crate) fn peft_folder(case: &Case, device: &Device) -> anyhow::Result<Outputs> {
    let model = load(case, device)?;
    let adapter = lora::load_adapter(&case.path("adapter"), model.projections(), device)?;
    let sample = model.forward(input(case, device)?, Some(&adapter));
    Ok(Outputs::default().float("out.sample", sample))
}

pub(crate) fn load(case: &Case, device: &Device) -> anyhow::Result<FluxTransformer> {
    Ok(FluxTransformer::load_as(
        case.model_folder()?.path(),
        device,
        case.dtype,
    )?)
}

fn input(case: &Case, device: &Device) -> anyhow::Result<FluxInput> {
    let guidance = case
        .has_input("guidance")
        .then(|| case.input("guidance", device));
    Ok(FluxInput {
        hidden_states: case.narrow_input("hidden_states", device)?,
        encoder_hidden_states: case.narrow_input("encoder_hidden_states", device)?,
        pooled_projections: case.narrow_input("pooled_projections", device)?,
        timestep: case.input("timestep", device)?,
        guidance: guidance.transpose()?,
        img_ids: case.input("img_ids", device)?,
        txt_ids: case.input("txt_ids", device)?,
    })
}
