use std::cell::RefCell;
use std::ops::Range;

use burn::module::Module;
use burn::tensor::{DType, Tensor};

use super::embeddings::TimeTextEmbed;
use super::single_transformer_block::FluxSingleTransformerBlock;
use super::transformer_block::FluxTransformerBlock;
use super::{FluxCondition, FluxContext, FluxTransformerConfig, Rotary};
use crate::dit::{self, AdaLayerNormContinuous, Blocks, Evaluation, Tokens, Transformer};
use crate::init::Init;
use crate::layers::Linear;
use crate::lora::{LoraAdapter, Projection, Scope};
use crate::ops;
use crate::weights::{DIFFUSERS_FILE, Names, Pretrained};

const NAMES: Names = Names {
    prefix: "",
    rename: &[
        ("attn.to_out", "attn.to_out.0"),
        ("ff.proj_in", "ff.net.0.proj"),
        ("ff.proj_out", "ff.net.2"),
        ("ff_context.proj_in", "ff_context.net.0.proj"),
        ("ff_context.proj_out", "ff_context.net.2"),
    ],
    ignored: &[],
};

/// Predicts the velocity of noised latents.
#[derive(Module, Debug)]
pub struct FluxTransformer {
    time_text_embed: TimeTextEmbed,
    context_embedder: Linear,
    x_embedder: Linear,
    transformer_blocks: Vec<FluxTransformerBlock>,
    single_transformer_blocks: Vec<FluxSingleTransformerBlock>,
    norm_out: AdaLayerNormContinuous,
    proj_out: Linear,
    #[module(skip)]
    config: FluxTransformerConfig,
    #[module(skip)]
    projections: Vec<Projection>,
}

/// All inputs of the reference's forward.
#[derive(Debug, Clone)]
pub struct FluxInput {
    /// Packed latents, noise tokens first: `[B, S, C]`
    pub hidden_states: Tensor<3>,
    /// Text tokens: `[B or 1, T, J]`
    pub encoder_hidden_states: Tensor<3>,
    /// Pooled text: `[B or 1, P]`
    pub pooled_projections: Tensor<2>,
    /// Time in 0..1: `[B]`
    pub timestep: Tensor<1>,
    /// Guidance scale, where the model takes one: `[B or 1]`
    pub guidance: Option<Tensor<1>>,
    /// Positions of the image tokens: `[S, axes]`
    pub img_ids: Tensor<2>,
    /// Positions of the text tokens: `[T, axes]`
    pub txt_ids: Tensor<2>,
}

impl Pretrained for FluxTransformer {
    type Config = FluxTransformerConfig;

    const FILE: &'static str = DIFFUSERS_FILE;

    fn init(config: &FluxTransformerConfig, init: &Init) -> Self {
        let rotated: usize = config.axes_dims_rope.iter().sum();
        assert_eq!(
            rotated, config.attention_head_dim,
            "axes_dims_rope add up to a head"
        );
        let projections = RefCell::new(Vec::new());
        let root = Scope::root(init, &projections);
        let dim = config.inner_dim();
        let blocks = root.child("transformer_blocks");
        let single_blocks = root.child("single_transformer_blocks");
        Self {
            time_text_embed: TimeTextEmbed::init(config, init),
            context_embedder: Linear::init(config.joint_attention_dim, dim, init),
            x_embedder: Linear::init(config.in_channels, dim, init),
            transformer_blocks: (0..config.num_layers)
                .map(|i| FluxTransformerBlock::init(config, &blocks.child(&i.to_string())))
                .collect(),
            single_transformer_blocks: (0..config.num_single_layers)
                .map(|i| {
                    FluxSingleTransformerBlock::init(config, &single_blocks.child(&i.to_string()))
                })
                .collect(),
            norm_out: AdaLayerNormContinuous::init(dim, init),
            proj_out: Linear::init(dim, config.out_features(), init),
            config: config.clone(),
            projections: projections.into_inner(),
        }
    }

    fn config(&self) -> &FluxTransformerConfig {
        &self.config
    }

    fn names(_config: &FluxTransformerConfig) -> Names {
        NAMES
    }
}

impl FluxTransformer {
    /// The velocity, as the reference's forward gives it.
    ///
    /// # Shapes
    /// * output: `[B, S, out]`
    pub fn forward(&self, input: FluxInput, adapter: Option<&LoraAdapter>) -> Tensor<3> {
        let context = self.prepare(FluxCondition {
            encoder_hidden_states: input.encoder_hidden_states,
            pooled_projections: input.pooled_projections,
            guidance: input.guidance,
            img_ids: input.img_ids,
            txt_ids: input.txt_ids,
        });
        let [_, tokens, _] = input.hidden_states.dims();
        self.evaluation(input.hidden_states, tokens, input.timestep, &context)
            .velocity(adapter)
    }
}

impl Transformer for FluxTransformer {
    type Condition = FluxCondition;
    type Context = FluxContext;

    fn projections(&self) -> &[Projection] {
        &self.projections
    }

    fn dtype(&self) -> DType {
        self.x_embedder.weight.val().dtype()
    }

    /// # Panics
    /// If the model takes a guidance scale and the condition has none.
    fn prepare(&self, condition: FluxCondition) -> FluxContext {
        let device = condition.encoder_hidden_states.device();
        let axes = &self.config.axes_dims_rope;
        FluxContext {
            context: self
                .context_embedder
                .forward(condition.encoder_hidden_states),
            fixed: self
                .time_text_embed
                .fixed(condition.pooled_projections, condition.guidance),
            rotary: Rotary::new(axes, condition.txt_ids, condition.img_ids, &device),
        }
    }

    fn evaluation<'a>(
        &'a self,
        hidden_states: Tensor<3>,
        kept: usize,
        timestep: Tensor<1>,
        context: &'a FluxContext,
    ) -> Evaluation<'a> {
        let [batch, image, _] = hidden_states.dims();
        let [_, text, dim] = context.context.dims();
        let temb = self
            .time_text_embed
            .forward(timestep, context.fixed.clone());
        let blocks = FluxBlocks {
            model: self,
            rotary: &context.rotary,
            silu_temb: ops::silu(temb),
            all: 0..text + image,
            kept: text..text + kept,
        };
        let tokens = Tokens {
            x: self.x_embedder.forward(hidden_states),
            context: Some(context.context.clone().expand([batch, text, dim])),
        };
        Evaluation::new(blocks, tokens)
    }
}

/// Double-stream blocks, then single-stream blocks.
struct FluxBlocks<'a> {
    model: &'a FluxTransformer,
    rotary: &'a Rotary,
    /// Silu of the conditioning: `[B, D]`
    silu_temb: Tensor<2>,
    /// Places of all tokens, text first, and of those whose velocity is wanted.
    all: Range<usize>,
    kept: Range<usize>,
}

impl Blocks for FluxBlocks<'_> {
    fn count(&self) -> usize {
        self.model.transformer_blocks.len() + self.model.single_transformer_blocks.len()
    }

    fn slots(&self, block: usize) -> Range<usize> {
        let double = self.model.transformer_blocks.len();
        let path = match block.checked_sub(double) {
            None => format!("transformer_blocks.{block}"),
            Some(single) => format!("single_transformer_blocks.{single}"),
        };
        dit::slots_under(&self.model.projections, &path)
    }

    fn forward(&self, block: usize, tokens: Tokens, adapter: Option<&LoraAdapter>) -> Tokens {
        let silu_temb = self.silu_temb.clone();
        if let Some(double) = self.model.transformer_blocks.get(block) {
            let context = tokens.context.expect("text has its own stream here");
            let (x, context) = double.forward(tokens.x, context, silu_temb, self.rotary, adapter);
            return Tokens {
                x,
                context: Some(context),
            };
        }
        let singles = &self.model.single_transformer_blocks;
        let single = block - self.model.transformer_blocks.len();
        // Nothing reads the other tokens after the last block.
        let kept = match single + 1 == singles.len() {
            true => &self.kept,
            false => &self.all,
        };
        let x = singles[single].forward(tokens.joined(), kept, silu_temb, self.rotary, adapter);
        Tokens { x, context: None }
    }

    fn velocity(&self, tokens: Tokens) -> Tensor<3> {
        let x = tokens.kept(self.kept.len());
        let x = self.model.norm_out.forward(x, self.silu_temb.clone());
        self.model.proj_out.forward(x)
    }
}
