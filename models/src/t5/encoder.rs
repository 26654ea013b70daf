use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor};

use super::T5Config;
use super::block::T5Block;
use crate::init::Init;
use crate::layers::{Embedding, RmsNorm};
use crate::weights::{LoadError, Names, TRANSFORMERS_FILE, Table, Weights, save_folder};

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

impl T5Encoder {
    /// A new model; its parameters are trainable.
    pub fn init(config: &T5Config, init: &Init) -> Self {
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

    /// The model of a transformers folder, in f32.
    ///
    /// # Errors
    /// If its files can't be read or do not fit each other.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, LoadError> {
        Self::load_as(folder, device, DType::F32)
    }

    /// As [`T5Encoder::load`], with weights of the given float type.
    ///
    /// # Errors
    /// As [`T5Encoder::load`].
    pub fn load_as(folder: &Path, device: &Device, dtype: DType) -> Result<Self, LoadError> {
        let config = T5Config::load(folder)?;
        Self::from_weights(&config, &Weights::from_folder(folder)?, device, dtype)
    }

    /// Names and shapes of the tensors of a model of this configuration.
    pub fn table(config: &T5Config) -> Table {
        Table::of(&Self::init(config, &Init::unused()), &NAMES)
    }

    /// A model of the given weights.
    ///
    /// # Errors
    /// If they do not fit the configuration.
    pub fn from_weights(
        config: &T5Config,
        weights: &Weights,
        device: &Device,
        dtype: DType,
    ) -> Result<Self, LoadError> {
        weights.load_as(Self::init(config, &Init::new(0, device)), &NAMES, dtype)
    }

    /// Saves the model as a transformers folder.
    ///
    /// # Errors
    /// If the folder can't be written.
    pub fn save(&self, folder: &Path) -> Result<(), LoadError> {
        save_folder(folder, &self.config, self, &NAMES, TRANSFORMERS_FILE)
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

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
