use std::path::Path;

use burn::tensor::{DType, Device, Tensor};

use super::*;
use crate::dit::Transformer;
use crate::golden::Case;
use crate::init::Init;
use crate::lora::{LoraAdapter, LoraConfig, flat_len, load_adapter, save_diffusers, save_peft};
use crate::weights::{Names, Pretrained, read_config, tensors_of};

fn model(case: &Case) -> FluxTransformer {
    let config = read_config(&case.path("config.json")).unwrap();
    let weights = case.weights();
    FluxTransformer::from_weights(&config, &weights, &Device::flex(), DType::F32).unwrap()
}

fn input(case: &Case) -> FluxInput {
    FluxInput {
        hidden_states: case.tensor("in.hidden_states"),
        encoder_hidden_states: case.tensor("in.encoder_hidden_states"),
        pooled_projections: case.tensor("in.pooled_projections"),
        timestep: case.tensor("in.timestep"),
        guidance: case.has("in.guidance").then(|| case.tensor("in.guidance")),
        img_ids: case.tensor("in.img_ids"),
        txt_ids: case.tensor("in.txt_ids"),
    }
}

#[test]
fn the_transformer_equals_the_reference() {
    for case in Case::all("flux_transformer") {
        let sample = model(&case).forward(input(&case), None);
        case.check("out.sample", sample, 1e-4);
    }
}

#[test]
fn adapters_of_peft_change_the_transformer_as_they_do_there() {
    for case in Case::all("peft_folder") {
        let model = model(&case);
        let folder = case.path("adapter");
        let adapter = load_adapter(&folder, model.projections(), &Device::flex()).unwrap();
        let sample = model.forward(input(&case), Some(&adapter));
        case.check("out.sample", sample, 1e-4);
    }
}

fn small_model() -> FluxTransformer {
    let config = FluxTransformerConfig {
        in_channels: 4,
        num_layers: 1,
        num_single_layers: 1,
        attention_head_dim: 8,
        num_attention_heads: 2,
        joint_attention_dim: 6,
        pooled_projection_dim: 5,
        axes_dims_rope: vec![2, 2, 4],
        ..Default::default()
    };
    FluxTransformer::init(&config, &Init::new(1, &Device::flex()))
}

fn lora_config() -> LoraConfig {
    LoraConfig {
        rank: 2,
        alpha: 6.0,
        target_modules: vec!["to_q".into(), "to_out.0".into()],
    }
}

/// An adapter whose factors are all different from zero.
fn adapter(model: &FluxTransformer) -> LoraAdapter {
    let config = lora_config();
    let flat = crate::noise::normal_values(5, flat_len(&config, model.projections()));
    LoraAdapter::from_flat(&config, model.projections(), &flat, &Device::flex())
}

#[test]
fn saved_models_load_back() {
    let folder = tempfile::tempdir().unwrap();
    let model = small_model();
    model.save(folder.path()).unwrap();
    let loaded = FluxTransformer::load(folder.path(), &Device::flex()).unwrap();
    assert_eq!(loaded.config(), model.config());
    let tensors = |model: &FluxTransformer| tensors_of(model, &Names::default());
    assert_eq!(tensors(&loaded), tensors(&model));
}

#[test]
fn saved_adapters_load_back_from_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    let (model, config) = (small_model(), lora_config());
    let adapter = adapter(&model);
    let projections = model.projections();
    save_peft(folder.path(), &adapter, &config, projections).unwrap();
    save_diffusers(folder.path(), &adapter, &config, projections).unwrap();
    let device = Device::flex();
    let file = folder.path().join("pytorch_lora_weights.safetensors");
    for loaded in [
        load_adapter(folder.path(), projections, &device).unwrap(),
        load_adapter(&file, projections, &device).unwrap(),
    ] {
        assert_eq!(loaded.to_flat(), adapter.to_flat());
        assert_eq!(loaded.scale(), 3.0);
    }
}

#[test]
fn an_adapter_of_another_model_is_refused_with_all_names() {
    let folder = tempfile::tempdir().unwrap();
    let model = small_model();
    let adapter = adapter(&model);
    save_peft(folder.path(), &adapter, &lora_config(), model.projections()).unwrap();
    let mut others = model.projections().to_vec();
    others[0].name = "gone".into();
    others.retain(|p| !p.name.ends_with("attn.to_q"));
    let error = load_adapter(folder.path(), &others, &Device::flex()).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("the adapter does not fit this model"),
        "{message}"
    );
    let names =
        "unknown layer (2): single_transformer_blocks.0.attn.to_q, transformer_blocks.0.attn.to_q";
    assert!(message.contains(names), "{message}");
}

fn small_input() -> FluxInput {
    let device = Device::flex();
    FluxInput {
        hidden_states: Tensor::ones([2, 3, 4], &device),
        encoder_hidden_states: Tensor::ones([1, 2, 6], &device),
        pooled_projections: Tensor::ones([1, 5], &device),
        timestep: Tensor::from_floats([0.5, 0.25], &device),
        guidance: None,
        img_ids: Tensor::ones([3, 3], &device),
        txt_ids: Tensor::zeros([2, 3], &device),
    }
}

#[test]
fn merging_an_adapter_gives_its_outputs_and_leaves_the_base_alone() {
    let model = small_model();
    let adapter = adapter(&model);
    let before = model.forward(small_input(), None).into_data();
    let merged = model.merged(&adapter);
    let difference =
        merged.forward(small_input(), None) - model.forward(small_input(), Some(&adapter));
    assert!(difference.abs().max().into_scalar::<f32>() < 1e-5);
    assert_eq!(model.forward(small_input(), None).into_data(), before);
}

#[test]
fn an_adapter_is_found_in_either_form_and_its_absence_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (model, config) = (small_model(), lora_config());
    let (adapter, projections) = (adapter(&model), model.projections());
    let load = |path: &Path| load_adapter(path, projections, &Device::flex());
    let message = load(folder.path()).unwrap_err().to_string();
    assert!(message.contains(
        "no adapter: neither adapter_config.json nor pytorch_lora_weights.safetensors is there"
    ));
    save_diffusers(folder.path(), &adapter, &config, projections).unwrap();
    let file = folder.path().join("pytorch_lora_weights.safetensors");
    assert_eq!(load(folder.path()).unwrap().to_flat(), adapter.to_flat());
    assert_eq!(load(&file).unwrap().to_flat(), adapter.to_flat());
    std::fs::remove_file(file).unwrap();
    save_peft(folder.path(), &adapter, &config, projections).unwrap();
    assert_eq!(load(folder.path()).unwrap().scale(), 3.0);
}

#[test]
fn ranks_and_alphas_of_single_layers_come_from_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let (model, config) = (small_model(), lora_config());
    let (adapter, projections) = (adapter(&model), model.projections());
    save_peft(folder.path(), &adapter, &config, projections).unwrap();
    let path = folder.path().join("adapter_config.json");
    let mut json: serde_json::Value = read_config(&path).unwrap();
    json["alpha_pattern"] = serde_json::json!({"to_out.0": 1.5});
    json["rank_pattern"] = serde_json::json!({"to_q": 2});
    std::fs::write(&path, json.to_string()).unwrap();
    let loaded = load_adapter(folder.path(), projections, &Device::flex()).unwrap();
    let product = |adapter: &LoraAdapter, slot: usize| {
        let pair = adapter.pair(slot).unwrap();
        pair.b.val().matmul(pair.a.val()) * adapter.scale()
    };
    for (slot, projection) in projections.iter().enumerate() {
        if adapter.pair(slot).is_some() {
            // alpha 1.5 in 6's place is a quarter of the update.
            let factor = if projection.name.ends_with("to_out.0") {
                0.25
            } else {
                1.0
            };
            let difference = product(&loaded, slot) - product(&adapter, slot) * factor;
            assert!(
                difference.abs().max().into_scalar::<f32>() < 1e-5,
                "{}",
                projection.name
            );
        }
    }
}

#[test]
fn the_old_policy_and_the_reference_share_the_base() {
    let model = small_model();
    let device = Device::flex();
    let zero = LoraAdapter::init(&lora_config(), model.projections(), 1, &device);
    let input = small_input();
    let values = |adapter: Option<&LoraAdapter>| model.forward(input.clone(), adapter).into_data();
    assert_eq!(values(None), values(Some(&zero)));
    assert_ne!(values(None), values(Some(&adapter(&model))));
}
