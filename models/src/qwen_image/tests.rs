use burn::tensor::{DType, Device, Tensor};

use super::*;
use crate::dit::Transformer;
use crate::golden::Case;
use crate::init::Init;
use crate::lora::{LoraAdapter, LoraConfig, flat_len};
use crate::noise;
use crate::weights::{Names, Pretrained, read_config, tensors_of};

fn model(case: &Case) -> QwenImageTransformer {
    let config = read_config(&case.path("config.json")).unwrap();
    let weights = case.weights();
    QwenImageTransformer::from_weights(&config, &weights, &Device::flex(), DType::F32).unwrap()
}

fn input(case: &Case) -> QwenImageInput {
    let images = case.shape("in.img_shapes")[1];
    let sides = case.integers("in.img_shapes");
    let shapes = sides[..3 * images].chunks_exact(3).map(|sides| ImageShape {
        frames: sides[0] as usize,
        height: sides[1] as usize,
        width: sides[2] as usize,
    });
    let mask = case.integers("in.encoder_hidden_states_mask");
    QwenImageInput {
        hidden_states: case.tensor("in.hidden_states"),
        encoder_hidden_states: case.tensor("in.encoder_hidden_states"),
        encoder_hidden_states_mask: Some(mask.iter().map(|real| *real != 0).collect()),
        timestep: case.tensor("in.timestep"),
        img_shapes: shapes.collect(),
    }
}

#[test]
fn the_transformer_equals_the_reference() {
    for case in Case::all("qwen_image_transformer") {
        let sample = model(&case).forward(input(&case), None);
        case.check("out.sample", sample, 1e-4);
    }
}

fn small_model() -> QwenImageTransformer {
    let config = QwenImageTransformerConfig {
        in_channels: 4,
        out_channels: Some(1),
        num_layers: 2,
        attention_head_dim: 8,
        num_attention_heads: 2,
        joint_attention_dim: 6,
        axes_dims_rope: [2, 2, 4],
        ..Default::default()
    };
    QwenImageTransformer::init(&config, &Init::new(1, &Device::flex()))
}

fn small_input() -> QwenImageInput {
    let device = Device::flex();
    let shape = |height, width| ImageShape {
        frames: 1,
        height,
        width,
    };
    QwenImageInput {
        hidden_states: noise::normal(1, [2, 8, 4], &device),
        encoder_hidden_states: noise::normal(2, [2, 3, 6], &device),
        encoder_hidden_states_mask: Some(vec![true, true, false, true, true, false]),
        timestep: Tensor::from_floats([0.5, 0.25], &device),
        img_shapes: vec![shape(2, 3), shape(1, 2)],
    }
}

/// An adapter on every projection whose factors are all different from zero.
fn adapter(model: &QwenImageTransformer) -> LoraAdapter {
    let config = LoraConfig {
        rank: 2,
        alpha: 6.0,
        target_modules: model.projections().iter().map(|p| p.name.clone()).collect(),
    };
    let flat = noise::normal_values(5, flat_len(&config, model.projections()));
    LoraAdapter::from_flat(&config, model.projections(), &flat, &Device::flex())
}

fn difference(a: Tensor<3>, b: Tensor<3>) -> f32 {
    let scale = b.clone().abs().max().into_scalar::<f32>();
    (a - b).abs().max().into_scalar::<f32>() / scale
}

#[test]
fn saved_models_load_back_under_the_names_of_their_projections() {
    let folder = tempfile::tempdir().unwrap();
    let model = small_model();
    model.save(folder.path()).unwrap();
    let loaded = QwenImageTransformer::load(folder.path(), &Device::flex()).unwrap();
    assert_eq!(loaded.config(), model.config());
    let tensors = |model: &QwenImageTransformer| tensors_of(model, &Names::default());
    assert_eq!(tensors(&loaded), tensors(&model));
    let weights = crate::weights::Weights::from_folder(folder.path()).unwrap();
    for projection in model.projections() {
        let shape = weights.shape(&format!("{}.weight", projection.name));
        assert_eq!(
            shape,
            Some(&[projection.out_features, projection.in_features][..]),
            "{}",
            projection.name
        );
    }
}

#[test]
fn a_step_gives_the_first_tokens_of_the_whole() {
    let model = small_model();
    let (input, adapter) = (small_input(), adapter(&model));
    let whole = model.forward(input.clone(), Some(&adapter));
    let context = model.prepare(QwenImageCondition {
        encoder_hidden_states: input.encoder_hidden_states,
        text_lengths: vec![2, 2],
        img_shapes: input.img_shapes,
    });
    let evaluation = model.evaluation(input.hidden_states, 6, input.timestep, &context);
    let part = evaluation.velocity(Some(&adapter));
    assert!(difference(part, whole.narrow(1, 0, 6)) < 1e-5);
}

#[test]
fn padding_changes_nothing() {
    let model = small_model();
    let padded = small_input();
    let bare = QwenImageInput {
        encoder_hidden_states: padded.encoder_hidden_states.clone().narrow(1, 0, 2),
        encoder_hidden_states_mask: None,
        ..padded.clone()
    };
    assert!(difference(model.forward(bare, None), model.forward(padded, None)) < 1e-5);
}

#[test]
fn merging_an_adapter_gives_its_outputs() {
    let model = small_model();
    let adapter = adapter(&model);
    let merged = model.merged(&adapter).forward(small_input(), None);
    let apart = model.forward(small_input(), Some(&adapter));
    assert!(difference(merged, apart.clone()) < 1e-5);
    assert!(difference(model.forward(small_input(), None), apart) > 1e-2);
}

#[test]
fn other_variants_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("config.json"),
        r#"{"zero_cond_t": true}"#,
    )
    .unwrap();
    let error = QwenImageTransformer::load(folder.path(), &Device::flex()).unwrap_err();
    let expected = "zero_cond_t = true is not supported; supported: false";
    assert!(error.to_string().ends_with(expected), "{error}");
}
