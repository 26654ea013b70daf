//! Gradients that come back a block at a time are those of one graph: bit for bit on our own ops, on the CPU.
//!
//! `RETOUCH_TEST_DEVICE` names the device, by default `cpu`.

use burn::tensor::{DType, Device, Tensor};
use retouch_models::dit::Transformer;
use retouch_models::flux::{FluxCondition, FluxTransformer, FluxTransformerConfig};
use retouch_models::init::Init;
use retouch_models::lora::{
    Checkpointing, LoraAdapter, LoraConfig, Projection, Tracked, Trained, flat_len,
};
use retouch_models::noise;
use retouch_models::ops;
use retouch_models::qwen_image::{
    ImageShape, QwenImageCondition, QwenImageTransformer, QwenImageTransformerConfig,
};

const BATCH: usize = 2;
const IMAGE_TOKENS: usize = 8;
const KEPT_TOKENS: usize = 6;
const TEXT_TOKENS: usize = 3;
const CHANNELS: usize = 4;
const TEXT_WIDTH: usize = 6;
/// The attention projections of double-stream blocks.
const ATTENTION: [&str; 8] = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
];

fn device() -> Device {
    let name = std::env::var("RETOUCH_TEST_DEVICE");
    retouch_models::device::parse(name.as_deref().unwrap_or("cpu")).unwrap()
}

/// A transformer with what one condition's evaluations share.
struct Network<T: Transformer> {
    model: T,
    context: T::Context,
}

impl<T: Transformer> Network<T> {
    /// A random transformer whose weights are stored as `dtype`.
    fn new(config: &T::Config, dtype: DType, condition: T::Condition) -> Self {
        let (folder, device) = (tempfile::tempdir().unwrap(), device());
        let random = T::init(config, &Init::new(1, &device));
        random.save(folder.path()).unwrap();
        let model = T::load_as(folder.path(), &device, dtype).unwrap();
        let model = model.no_grad();
        Self {
            context: model.prepare(condition),
            model,
        }
    }

    fn track<'a>(&'a self, x: Tensor<3>, t: Tensor<1>, trained: Trained<'a>) -> Tracked<'a> {
        let x = x.cast(self.model.dtype());
        let evaluation = self.model.evaluation(x, KEPT_TOKENS, t, &self.context);
        evaluation.track(trained)
    }
}

fn flux(dtype: DType) -> Network<FluxTransformer> {
    let device = device();
    let config = FluxTransformerConfig {
        in_channels: CHANNELS,
        num_layers: 3,
        num_single_layers: 3,
        attention_head_dim: 8,
        num_attention_heads: 2,
        joint_attention_dim: TEXT_WIDTH,
        pooled_projection_dim: 5,
        axes_dims_rope: vec![2, 2, 4],
        ..Default::default()
    };
    let condition = FluxCondition {
        encoder_hidden_states: text(1).cast(dtype),
        pooled_projections: noise::normal::<2>(3, [1, 5], &device).cast(dtype),
        guidance: None,
        img_ids: noise::normal(4, [IMAGE_TOKENS, 3], &device),
        txt_ids: Tensor::zeros([TEXT_TOKENS, 3], &device),
    };
    Network::new(&config, dtype, condition)
}

fn qwen(dtype: DType) -> Network<QwenImageTransformer> {
    let config = QwenImageTransformerConfig {
        in_channels: CHANNELS,
        out_channels: Some(1),
        num_layers: 4,
        attention_head_dim: 8,
        num_attention_heads: 2,
        joint_attention_dim: TEXT_WIDTH,
        axes_dims_rope: [2, 2, 4],
        ..Default::default()
    };
    let shape = |height, width| ImageShape {
        frames: 1,
        height,
        width,
    };
    let condition = QwenImageCondition {
        encoder_hidden_states: text(BATCH).cast(dtype),
        // One row's text is padded.
        text_lengths: vec![TEXT_TOKENS, TEXT_TOKENS - 1],
        img_shapes: vec![shape(2, 3), shape(1, 2)],
    };
    Network::new(&config, dtype, condition)
}

fn text(rows: usize) -> Tensor<3> {
    noise::normal(2, [rows, TEXT_TOKENS, TEXT_WIDTH], &device())
}

/// The loss of a velocity and its flat gradient.
fn gradient(network: &Network<impl Transformer>, trained: Trained<'_>) -> (f32, Vec<f32>) {
    let device = device();
    let x = noise::normal(6, [BATCH, IMAGE_TOKENS, CHANNELS], &device);
    let t = Tensor::from_floats([0.5, 0.25], &device);
    let tracked = network.track(x, t, trained);
    let loss = tracked.output().cast(DType::F32).square().sum();
    let gradient = tracked.gradient(&loss.backward()).into_flat();
    (loss.inner().into_scalar(), gradient)
}

/// An adapter whose factors are all different from zero.
fn adapter(network: &Network<impl Transformer>, targets: &[&str]) -> LoraAdapter {
    let config = LoraConfig {
        rank: 2,
        alpha: 6.0,
        target_modules: targets.iter().map(|&target| target.to_owned()).collect(),
    };
    let projections = network.model.projections();
    let flat = noise::normal_values(5, flat_len(&config, projections));
    LoraAdapter::from_flat(&config, projections, &flat, &device().autodiff())
}

/// The share of an adapter's factors that a loss reaches.
fn reached(gradient: &[f32]) -> f64 {
    let reached = gradient.iter().filter(|value| **value != 0.0).count();
    reached as f64 / gradient.len() as f64
}

fn ways_agree<T: Transformer>(new: fn(DType) -> Network<T>, targets: &[&[&str]]) {
    for dtype in [DType::F32, DType::BF16] {
        if !device().supports_dtype(dtype) {
            println!("left out: {dtype:?}");
            continue;
        }
        let network = new(dtype);
        for targets in targets {
            let adapter = adapter(&network, targets);
            let of = |checkpointing| {
                let trained = Trained {
                    adapter: &adapter,
                    checkpointing,
                };
                gradient(&network, trained)
            };
            let (whole, by_block) = (of(Checkpointing::None), of(Checkpointing::Block));
            assert!(reached(&whole.1) > 0.7, "{targets:?} {dtype:?}");
            assert_agree(whole, by_block, &format!("{targets:?} {dtype:?}"));
        }
    }
}

/// The same bits on our own ops of the CPU. Elsewhere kernels differ from graph to graph: the same direction, and loss.
fn assert_agree(whole: (f32, Vec<f32>), by_block: (f32, Vec<f32>), what: &str) {
    if device() == Device::flex() && ops::path_name() == "fused" {
        return assert!(whole == by_block, "{what}");
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let (a, b) = (&whole.1, &by_block.1);
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    assert!(cosine > 0.999, "{what}: {cosine}");
    assert!((whole.0 / by_block.0 - 1.0).abs() < 1e-2, "{what}");
}

#[test]
fn flux_has_the_same_gradients_by_block() {
    ways_agree(
        flux,
        &[
            &ATTENTION,
            &[
                "net.0.proj",
                "net.2",
                "norm.linear",
                "norm1.linear",
                "proj_mlp",
                "proj_out",
            ],
            // One layer: blocks below it get no gradient, blocks above it pass one on.
            &["transformer_blocks.1.attn.to_v"],
            &["single_transformer_blocks.1.attn.to_k"],
            &["single_transformer_blocks.2.proj_out"],
        ],
    );
}

#[test]
fn qwen_image_has_the_same_gradients_by_block() {
    ways_agree(
        qwen,
        &[
            &ATTENTION,
            &["net.0.proj", "net.2", "img_mod.1", "txt_mod.1"],
            &["transformer_blocks.2.attn.add_v_proj"],
            &["transformer_blocks.3.img_mlp.net.2"],
        ],
    );
}

/// Going back a block at a time reaches nothing else.
#[test]
fn every_projection_is_a_blocks() {
    let inside = |projection: &Projection| {
        let mut path = projection.name.split('.');
        let blocks = path
            .next()
            .is_some_and(|name| name.ends_with("transformer_blocks"));
        blocks
            && path
                .next()
                .is_some_and(|index| index.parse::<usize>().is_ok())
    };
    assert!(flux(DType::F32).model.projections().iter().all(inside));
    assert!(qwen(DType::F32).model.projections().iter().all(inside));
}

#[test]
fn a_forward_pass_by_block_has_no_graph_below_its_output() {
    let network = flux(DType::F32);
    let adapter = adapter(&network, &["to_q"]);
    let trained = Trained {
        adapter: &adapter,
        checkpointing: Checkpointing::Block,
    };
    let device = device();
    let x = noise::normal(6, [BATCH, IMAGE_TOKENS, CHANNELS], &device);
    let t = Tensor::from_floats([0.5, 0.25], &device);
    let tracked = network.track(x, t, trained);
    let gradients = tracked.output().sum().backward();
    assert!(adapter.flat_gradients(&gradients).iter().all(|g| *g == 0.0));
    let tracked = tracked.gradient(&gradients).into_flat();
    assert!(tracked.iter().any(|g| *g != 0.0));
}
