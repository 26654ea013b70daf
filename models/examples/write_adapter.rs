//! Writes an adapter of each base model in both published formats, with an input and our output, for
//! tools/parity/interchange.py.
//!
//!     cargo run -p retouch-models --example write_adapter -- FOLDER

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use retouch_models::dit::Transformer;
use retouch_models::flux::{FluxInput, FluxTransformer};
use retouch_models::lora::{
    LoraAdapter, LoraConfig, Projection, flat_len, save_diffusers, save_peft,
};
use retouch_models::noise;
use retouch_models::qwen_image::{ImageShape, QwenImageInput, QwenImageTransformer};
use retouch_models::weights::{LoadError, Pretrained, TensorMap, write_safetensors};

const FLUX: &str = "kontext_pipeline__euler";
const QWEN: &str = "qwen_image_edit_pipeline__sequential_positions";

fn main() -> Result<(), Box<dyn Error>> {
    let folder: PathBuf = std::env::args_os()
        .nth(1)
        .ok_or("expected a folder to write to")?
        .into();
    flux(&folder.join("flux"))?;
    qwen(&folder.join("qwen"))?;
    println!("{}", folder.display());
    Ok(())
}

fn flux(folder: &Path) -> Result<(), LoadError> {
    let device = Device::flex();
    let model = FluxTransformer::load(&transformer_of(FLUX), &device)?;
    let adapter = write_adapter(folder, model.projections())?;
    let config = model.config();
    let input = FluxInput {
        hidden_states: noise::normal(1, [2, 6, config.in_channels], &device),
        encoder_hidden_states: noise::normal(2, [2, 5, config.joint_attention_dim], &device),
        pooled_projections: noise::normal(3, [2, config.pooled_projection_dim], &device),
        timestep: Tensor::from_floats([0.75, 0.3], &device),
        guidance: Some(Tensor::from_floats([2.5, 3.5], &device)),
        img_ids: noise::normal(4, [6, 3], &device)
            .abs()
            .mul_scalar(3.0)
            .round(),
        txt_ids: Tensor::zeros([5, 3], &device),
    };
    let guidance = input.guidance.as_ref().expect("the model takes guidance");
    let inputs = [
        ("in.hidden_states", input.hidden_states.to_data()),
        (
            "in.encoder_hidden_states",
            input.encoder_hidden_states.to_data(),
        ),
        ("in.pooled_projections", input.pooled_projections.to_data()),
        ("in.timestep", input.timestep.to_data()),
        ("in.guidance", guidance.to_data()),
        ("in.img_ids", input.img_ids.to_data()),
        ("in.txt_ids", input.txt_ids.to_data()),
    ];
    let output = |adapter: Option<&LoraAdapter>| model.forward(input.clone(), adapter).into_data();
    write_tensors(folder, inputs, [output(None), output(Some(&adapter))])
}

fn qwen(folder: &Path) -> Result<(), LoadError> {
    let device = Device::flex();
    let model = QwenImageTransformer::load(&transformer_of(QWEN), &device)?;
    let adapter = write_adapter(folder, model.projections())?;
    let config = model.config();
    let shapes = [[1, 2, 3], [1, 3, 1]];
    let input = QwenImageInput {
        hidden_states: noise::normal(1, [2, 9, config.in_channels], &device),
        encoder_hidden_states: noise::normal(2, [2, 5, config.joint_attention_dim], &device),
        encoder_hidden_states_mask: None,
        timestep: Tensor::from_floats([0.75, 0.3], &device),
        img_shapes: shapes
            .map(|[frames, height, width]| ImageShape {
                frames,
                height,
                width,
            })
            .to_vec(),
    };
    let shapes: Vec<i64> = shapes
        .as_flattened()
        .iter()
        .map(|side| *side as i64)
        .collect();
    let inputs = [
        ("in.hidden_states", input.hidden_states.to_data()),
        (
            "in.encoder_hidden_states",
            input.encoder_hidden_states.to_data(),
        ),
        ("in.timestep", input.timestep.to_data()),
        ("in.img_shapes", TensorData::new(shapes, [2, 3])),
    ];
    let output = |adapter: Option<&LoraAdapter>| model.forward(input.clone(), adapter).into_data();
    write_tensors(folder, inputs, [output(None), output(Some(&adapter))])
}

fn transformer_of(case: &str) -> PathBuf {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/parity/cases");
    cases.join(case).join("pipeline/transformer")
}

/// An adapter for a model with these projections, in both formats.
fn write_adapter(folder: &Path, projections: &[Projection]) -> Result<LoraAdapter, LoadError> {
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
    let flat = noise::normal_values(7, flat_len(&config, projections));
    let flat: Vec<f32> = flat.into_iter().map(|value| 0.3 * value).collect();
    let adapter = LoraAdapter::from_flat(&config, projections, &flat, &Device::flex());
    save_peft(folder, &adapter, &config, projections)?;
    save_diffusers(folder, &adapter, &config, projections)?;
    Ok(adapter)
}

/// Inputs, and the outputs without and with the adapter.
fn write_tensors<const N: usize>(
    folder: &Path,
    inputs: [(&str, TensorData); N],
    [base, adapted]: [TensorData; 2],
) -> Result<(), LoadError> {
    let inputs = inputs
        .into_iter()
        .map(|(name, data)| (name.to_owned(), data));
    let mut tensors: TensorMap = inputs.collect();
    tensors.insert("out.base".to_owned(), base);
    tensors.insert("out.adapted".to_owned(), adapted);
    write_safetensors(&folder.join("io.safetensors"), &tensors, &BTreeMap::new())
}
