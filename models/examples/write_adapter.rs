//! Writes an adapter in both published formats, with an input and our output, for tools/parity/interchange.py.
//!
//!     cargo run -p retouch-models --example write_adapter -- FOLDER

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use retouch_models::flux::{FluxInput, FluxTransformer};
use retouch_models::lora::{LoraAdapter, LoraConfig, save_diffusers, save_peft};
use retouch_models::noise;
use retouch_models::weights::{TensorMap, write_safetensors};

const PIPELINE: &str = "../tools/parity/cases/kontext_pipeline__euler/pipeline";

fn main() -> Result<(), Box<dyn Error>> {
    let folder: PathBuf = std::env::args_os()
        .nth(1)
        .ok_or("expected a folder to write to")?
        .into();
    let device = Device::flex();
    let pipeline = Path::new(env!("CARGO_MANIFEST_DIR")).join(PIPELINE);
    let model = FluxTransformer::load(&pipeline.join("transformer"), &device)?;
    let config = LoraConfig {
        rank: 3,
        // Neither the rank nor twice the rank: whoever ignores it is found out.
        alpha: 10.5,
        target_modules: [
            "to_q",
            "to_k",
            "to_v",
            "to_out.0",
            "add_q_proj",
            "to_add_out",
        ]
        .map(str::to_owned)
        .to_vec(),
    };
    let flat = noise::normal_values(7, config.flat_len(model.projections()));
    let flat: Vec<f32> = flat.into_iter().map(|value| 0.3 * value).collect();
    let adapter = LoraAdapter::from_flat(&config, model.projections(), &flat, &device);
    save_peft(&folder, &adapter, &config, model.projections())?;
    save_diffusers(&folder, &adapter, &config, model.projections())?;
    let input = input(&model, &device);
    let mut tensors = named(&input);
    let output = |adapter| model.forward(input.clone(), adapter).into_data();
    tensors.insert("out.base".into(), output(None));
    tensors.insert("out.adapted".into(), output(Some(&adapter)));
    write_safetensors(&folder.join("io.safetensors"), &tensors, &BTreeMap::new())?;
    println!("{}", folder.display());
    Ok(())
}

fn input(model: &FluxTransformer, device: &Device) -> FluxInput {
    let config = model.config();
    FluxInput {
        hidden_states: noise::normal(1, [2, 6, config.in_channels], device),
        encoder_hidden_states: noise::normal(2, [2, 5, config.joint_attention_dim], device),
        pooled_projections: noise::normal(3, [2, config.pooled_projection_dim], device),
        timestep: Tensor::from_floats([0.75, 0.3], device),
        guidance: Some(Tensor::from_floats([2.5, 3.5], device)),
        img_ids: noise::normal(4, [6, 3], device)
            .abs()
            .mul_scalar(3.0)
            .round(),
        txt_ids: Tensor::zeros([5, 3], device),
    }
}

fn named(input: &FluxInput) -> TensorMap {
    let guidance = input.guidance.as_ref().expect("the model takes guidance");
    [
        ("hidden_states", input.hidden_states.to_data()),
        (
            "encoder_hidden_states",
            input.encoder_hidden_states.to_data(),
        ),
        ("pooled_projections", input.pooled_projections.to_data()),
        ("timestep", input.timestep.to_data()),
        ("guidance", guidance.to_data()),
        ("img_ids", input.img_ids.to_data()),
        ("txt_ids", input.txt_ids.to_data()),
    ]
    .map(|(name, data)| (format!("in.{name}"), data))
    .into()
}
