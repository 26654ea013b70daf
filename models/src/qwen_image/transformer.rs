use std::cell::RefCell;
use std::ops::Range;

use burn::module::Module;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::embeddings::TimeTextEmbed;
use super::rotary::Rotary;
use super::transformer_block::{Conditioning, QwenImageTransformerBlock};
use super::{ImageShape, QwenImageCondition, QwenImageContext, QwenImageTransformerConfig};
use crate::dit::{
    self, AdaLayerNormContinuous, Blocks, EPS, Evaluation, JointRotary, Tokens, Transformer,
};
use crate::init::Init;
use crate::layers::{Linear, RmsNorm};
use crate::lora::{LoraAdapter, Projection, Scope};
use crate::ops::{self, AttentionMask};
use crate::weights::{DIFFUSERS_FILE, Names, Pretrained};

const NAMES: Names = Names {
    prefix: "",
    rename: &[
        ("attn.to_out", "attn.to_out.0"),
        ("img_mod.linear", "img_mod.1"),
        ("txt_mod.linear", "txt_mod.1"),
        ("img_mlp.proj_in", "img_mlp.net.0.proj"),
        ("img_mlp.proj_out", "img_mlp.net.2"),
        ("txt_mlp.proj_in", "txt_mlp.net.0.proj"),
        ("txt_mlp.proj_out", "txt_mlp.net.2"),
    ],
    ignored: &[],
};

/// Predicts the velocity of noised latents.
#[derive(Module, Debug)]
pub struct QwenImageTransformer {
    time_text_embed: TimeTextEmbed,
    txt_norm: RmsNorm,
    img_in: Linear,
    txt_in: Linear,
    transformer_blocks: Vec<QwenImageTransformerBlock>,
    norm_out: AdaLayerNormContinuous,
    proj_out: Linear,
    #[module(skip)]
    config: QwenImageTransformerConfig,
    #[module(skip)]
    projections: Vec<Projection>,
}

/// All inputs of the reference's forward.
#[derive(Debug, Clone)]
pub struct QwenImageInput {
    /// Packed latents, noise tokens first: `[B, S, C]`
    pub hidden_states: Tensor<3>,
    /// Text tokens: `[B, T, J]`
    pub encoder_hidden_states: Tensor<3>,
    /// Which text tokens are real, row after row: `B T` of them; without a mask, all.
    pub encoder_hidden_states_mask: Option<Vec<bool>>,
    /// Time in 0..1: `[B]`
    pub timestep: Tensor<1>,
    /// The images that the image tokens are of, the same for all rows.
    pub img_shapes: Vec<ImageShape>,
}

impl Pretrained for QwenImageTransformer {
    type Config = QwenImageTransformerConfig;

    const FILE: &'static str = DIFFUSERS_FILE;

    fn init(config: &QwenImageTransformerConfig, init: &Init) -> Self {
        assert!(
            config.rotates_whole_heads(),
            "axes_dims_rope are even and add up to a head"
        );
        let projections = RefCell::new(Vec::new());
        let root = Scope::root(init, &projections);
        let (dim, text) = (config.inner_dim(), config.joint_attention_dim);
        let blocks = root.child("transformer_blocks");
        Self {
            time_text_embed: TimeTextEmbed::init(dim, init),
            txt_norm: RmsNorm::init(text, EPS, init),
            img_in: Linear::init(config.in_channels, dim, init),
            txt_in: Linear::init(text, dim, init),
            transformer_blocks: (0..config.num_layers)
                .map(|i| QwenImageTransformerBlock::init(config, &blocks.child(&i.to_string())))
                .collect(),
            norm_out: AdaLayerNormContinuous::init(dim, init),
            proj_out: Linear::init(dim, config.out_features(), init),
            config: config.clone(),
            projections: projections.into_inner(),
        }
    }

    fn config(&self) -> &QwenImageTransformerConfig {
        &self.config
    }

    fn names(_config: &QwenImageTransformerConfig) -> Names {
        NAMES
    }
}

impl QwenImageTransformer {
    /// The velocity, as the reference's forward gives it.
    ///
    /// # Shapes
    /// * output: `[B, S, out]`
    pub fn forward(&self, input: QwenImageInput, adapter: Option<&LoraAdapter>) -> Tensor<3> {
        let [rows, text, _] = input.encoder_hidden_states.dims();
        let mask = input.encoder_hidden_states_mask.clone();
        let real = real_tokens(&mask.unwrap_or_else(|| vec![true; rows * text]), text);
        let [_, tokens, _] = input.hidden_states.dims();
        if real
            .iter()
            .all(|real| real.iter().copied().eq(0..real.len()))
        {
            let context = self.prepare(QwenImageCondition {
                encoder_hidden_states: input.encoder_hidden_states,
                text_lengths: real.iter().map(Vec::len).collect(),
                img_shapes: input.img_shapes,
            });
            let (x, t) = (input.hidden_states, input.timestep);
            return self.evaluation(x, tokens, t, &context).velocity(adapter);
        }
        // Real tokens that stand between padding: a row at a time, without its padding.
        let samples = real.iter().enumerate().map(|(row, real)| {
            let (x, t) = (input.hidden_states.clone(), input.timestep.clone());
            let context = self.context_of(&input, row, real);
            let (x, t) = (x.narrow(0, row, 1), t.narrow(0, row, 1));
            self.evaluation(x, tokens, t, &context).velocity(adapter)
        });
        Tensor::cat(samples.collect(), 0)
    }

    /// The context of one row's `real` text tokens.
    fn context_of(&self, input: &QwenImageInput, row: usize, real: &[usize]) -> QwenImageContext {
        let text = input.encoder_hidden_states.clone().narrow(0, row, 1);
        let device = text.device();
        let indices: Vec<i64> = real.iter().map(|place| *place as i64).collect();
        let indices = TensorData::new(indices, [real.len()]);
        let text = text.select(1, Tensor::<1, Int>::from_data(indices, &device));
        self.context(text, vec![real.len()], real, &input.img_shapes)
    }

    /// The context of text tokens that stand at the given places of the text.
    fn context(
        &self,
        text: Tensor<3>,
        text_lengths: Vec<usize>,
        places: &[usize],
        images: &[ImageShape],
    ) -> QwenImageContext {
        let rotary = Rotary::new(self.config.axes_dims_rope, images, places, &text.device());
        QwenImageContext {
            context: self.txt_in.forward(self.txt_norm.forward(text)),
            text_lengths,
            rotary,
        }
    }
}

impl Transformer for QwenImageTransformer {
    type Condition = QwenImageCondition;
    type Context = QwenImageContext;

    fn projections(&self) -> &[Projection] {
        &self.projections
    }

    fn dtype(&self) -> DType {
        self.img_in.weight.val().dtype()
    }

    /// # Panics
    /// If there is not one text length per row.
    fn prepare(&self, condition: QwenImageCondition) -> QwenImageContext {
        let [rows, text, _] = condition.encoder_hidden_states.dims();
        let QwenImageCondition {
            encoder_hidden_states,
            text_lengths,
            img_shapes,
        } = condition;
        assert_eq!(text_lengths.len(), rows, "one text length per row");
        let places: Vec<usize> = (0..text).collect();
        self.context(encoder_hidden_states, text_lengths, &places, &img_shapes)
    }

    fn evaluation<'a>(
        &'a self,
        hidden_states: Tensor<3>,
        kept: usize,
        timestep: Tensor<1>,
        context: &'a QwenImageContext,
    ) -> Evaluation<'a> {
        let [batch, image, _] = hidden_states.dims();
        let [_, text, dim] = context.context.dims();
        let blocks = QwenImageBlocks {
            model: self,
            rotary: context.rotary.joint(),
            silu_temb: ops::silu(self.time_text_embed.forward(timestep, self.dtype())),
            mask: context.mask(batch, image),
            kept,
        };
        let tokens = Tokens {
            x: self.img_in.forward(hidden_states),
            context: Some(context.context.clone().expand([batch, text, dim])),
        };
        Evaluation::new(blocks, tokens)
    }
}

/// Double-stream blocks alone.
struct QwenImageBlocks<'a> {
    model: &'a QwenImageTransformer,
    rotary: JointRotary<'a>,
    /// Silu of the conditioning: `[B, D]`
    silu_temb: Tensor<2>,
    mask: AttentionMask,
    /// Number of the image tokens whose velocity is wanted.
    kept: usize,
}

impl Blocks for QwenImageBlocks<'_> {
    fn count(&self) -> usize {
        self.model.transformer_blocks.len()
    }

    fn slots(&self, block: usize) -> Range<usize> {
        let path = format!("transformer_blocks.{block}");
        dit::slots_under(&self.model.projections, &path)
    }

    fn forward(&self, block: usize, tokens: Tokens, adapter: Option<&LoraAdapter>) -> Tokens {
        let given = Conditioning {
            silu_temb: &self.silu_temb,
            rotary: self.rotary,
            mask: &self.mask,
            adapter,
        };
        let Tokens { x, context } = tokens;
        let context = context.expect("text has its own stream up to the last block");
        let blocks = &self.model.transformer_blocks;
        if block + 1 == blocks.len() {
            let x = blocks[block].forward_last(x, self.kept, context, given);
            return Tokens { x, context: None };
        }
        let (x, context) = blocks[block].forward(x, context, given);
        Tokens {
            x,
            context: Some(context),
        }
    }

    fn velocity(&self, tokens: Tokens) -> Tensor<3> {
        let x = tokens.kept(self.kept);
        let x = self.model.norm_out.forward(x, self.silu_temb.clone());
        self.model.proj_out.forward(x)
    }
}

/// The places of each row's real tokens.
fn real_tokens(mask: &[bool], text: usize) -> Vec<Vec<usize>> {
    let rows = mask.chunks_exact(text);
    rows.map(|row| (0..text).filter(|place| row[*place]).collect())
        .collect()
}
