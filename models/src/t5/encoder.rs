use burn::module::Module;
use burn::tensor::{Int, Tensor};

use super::T5Config;
use super::block::T5Block;
use crate::init::Init;
use crate::layers::{Embedding, RmsNorm};
use crate::weights::{Names, Pretrained, TRANSFORMERS_FILE};

const NAMES: Names = Names {
    prefix: "",
    rename: &[
        ("self_attention.attention", "layer.0.SelfAttention"),
        ("self_attention", "layer.0"),
        ("feed_forward.dense", "layer.1.DenseReluDense"),
        ("feed_forward", "layer.1"),
    ],
    // Tied to `shared`; published files may hold it all the same.
    ignored: &["encoder.embed_tokens.weight"],
};

/// T5's encoder.
#[derive(Module, Debug)]
pub struct T5Encoder {
    shared: Embedding,
    encoder: Stack,
    #[module(skip)]
    config: T5Config,
}

#[derive(Module, Debug)]
struct Stack {
    block: Vec<T5Block>,
    final_layer_norm: RmsNorm,
}

impl Pretrained for T5Encoder {
    type Config = T5Config;

    const FILE: &'static str = TRANSFORMERS_FILE;

    fn init(config: &T5Config, init: &Init) -> Self {
        let block = (0..config.num_layers).map(|layer| T5Block::init(config, layer, init));
        Self {
            shared: Embedding::init(config.vocab_size, config.d_model, 1.0, init),
            encoder: Stack {
                block: block.collect(),
                final_layer_norm: RmsNorm::init(config.d_model, config.layer_norm_epsilon, init),
            },
            config: config.clone(),
        }
    }

    fn config(&self) -> &T5Config {
        &self.config
    }

    fn names(_config: &T5Config) -> Names {
        NAMES
    }
}

impl T5Encoder {
    /// The last hidden state. Without a mask, padding is attended to as any token is.
    ///
    /// # Shapes
    /// * ids, and mask with 1 at tokens that count: `[B, T]`
    /// * output: `[B, T, D]`
    pub fn forward(&self, ids: Tensor<2, Int>, mask: Option<Tensor<2, Int>>) -> Tensor<3> {
        let [_, tokens] = ids.dims();
        let x = self.shared.forward(ids);
        let bias = self.bias(tokens, mask, &x);
        let blocks = self.encoder.block.iter();
        let x = blocks.fold(x, |x, block| block.forward(x, bias.clone()));
        self.encoder.final_layer_norm.forward(x)
    }

    /// # Shapes
    /// * output: `[B or 1, heads, T, T]`
    fn bias(&self, tokens: usize, mask: Option<Tensor<2, Int>>, like: &Tensor<3>) -> Tensor<4> {
        /// Far below any score; no infinity, since a row may be masked altogether.
        const MASKED: f64 = -1e9;
        let first = &self.encoder.block[0].self_attention.attention;
        let bias = first.position_bias(tokens, &like.device());
        let bias = bias.expect("the first layer has the bias");
        let Some(mask) = mask else {
            return bias;
        };
        let masked = (mask.float().cast(like.dtype()) * -1.0 + 1.0) * MASKED;
        bias + masked.unsqueeze_dims(&[1, 1])
    }
}
