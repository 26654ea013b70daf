use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor};

use super::ClipTextConfig;
use super::encoder_layer::EncoderLayer;
use crate::init::Init;
use crate::layers::{Embedding, LayerNorm};
use crate::weights::{LoadError, Names, TRANSFORMERS_FILE, Table, Weights, save_folder};

/// As published; transformers 5 leaves the prefix out.
const NAMES: Names = Names {
    prefix: "text_model",
    rename: &[],
    ignored: &["position_ids"],
};
const NAMES_WITHOUT_PREFIX: Names = Names {
    prefix: "",
    ..NAMES
};

fn names_in(weights: &Weights) -> Names {
    match weights.names().any(|name| name.starts_with("text_model.")) {
        true => NAMES,
        false => NAMES_WITHOUT_PREFIX,
    }
}

/// CLIP's text encoder.
#[derive(Module, Debug)]
pub struct ClipText {
    embeddings: Embeddings,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
    #[module(skip)]
    config: ClipTextConfig,
}

#[derive(Module, Debug)]
struct Embeddings {
    token_embedding: Embedding,
    position_embedding: Embedding,
}

#[derive(Module, Debug)]
struct Encoder {
    layers: Vec<EncoderLayer>,
}

/// What the encoder makes of a batch of texts.
#[derive(Debug, Clone)]
pub struct ClipOutput {
    /// Every token: `[B, T, D]`
    pub last_hidden_state: Tensor<3>,
    /// The end token: `[B, D]`
    pub pooler_output: Tensor<2>,
}

impl ClipText {
    /// A new model; its parameters are trainable.
    pub fn init(config: &ClipTextConfig, init: &Init) -> Self {
        const STD: f64 = 0.02;
        let dim = config.hidden_size;
        let positions = config.max_position_embeddings;
        let layers = (0..config.num_hidden_layers).map(|_| EncoderLayer::init(config, init));
        Self {
            embeddings: Embeddings {
                token_embedding: Embedding::init(config.vocab_size, dim, STD, init),
                position_embedding: Embedding::init(positions, dim, STD, init),
            },
            encoder: Encoder {
                layers: layers.collect(),
            },
            final_layer_norm: LayerNorm::init(dim, config.layer_norm_eps, init),
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

    /// As [`ClipText::load`], with weights of the given float type.
    ///
    /// # Errors
    /// As [`ClipText::load`].
    pub fn load_as(folder: &Path, device: &Device, dtype: DType) -> Result<Self, LoadError> {
        let config = ClipTextConfig::load(folder)?;
        Self::from_weights(&config, &Weights::from_folder(folder)?, device, dtype)
    }

    /// Names and shapes of the tensors of a published model of this configuration.
    pub fn table(config: &ClipTextConfig) -> Table {
        Table::of(&Self::init(config, &Init::unused()), &NAMES)
    }

    /// The same under the names that this file uses.
    pub fn table_in(config: &ClipTextConfig, weights: &Weights) -> Table {
        Table::of(&Self::init(config, &Init::unused()), &names_in(weights))
    }

    /// A model of the given weights.
    ///
    /// # Errors
    /// If they do not fit the configuration.
    pub fn from_weights(
        config: &ClipTextConfig,
        weights: &Weights,
        device: &Device,
        dtype: DType,
    ) -> Result<Self, LoadError> {
        let module = Self::init(config, &Init::new(0, device));
        weights.load_as(module, &names_in(weights), dtype)
    }

    /// Saves the model as a transformers folder, with the published names.
    ///
    /// # Errors
    /// If the folder can't be written.
    pub fn save(&self, folder: &Path) -> Result<(), LoadError> {
        save_folder(folder, &self.config, self, &NAMES, TRANSFORMERS_FILE)
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// # Shapes
    /// * ids: `[B, T]`, T at most `max_position_embeddings`
    pub fn forward(&self, ids: Tensor<2, Int>) -> ClipOutput {
        let x = self.embeddings.forward(ids.clone());
        let x = self
            .encoder
            .layers
            .iter()
            .fold(x, |x, layer| layer.forward(x));
        let last_hidden_state = self.final_layer_norm.forward(x);
        ClipOutput {
            pooler_output: self.pool(last_hidden_state.clone(), ids),
            last_hidden_state,
        }
    }

    /// # Shapes
    /// * hidden: `[B, T, D]`, ids: `[B, T]`
    /// * output: `[B, D]`
    fn pool(&self, hidden: Tensor<3>, ids: Tensor<2, Int>) -> Tensor<2> {
        let [batch, tokens, dim] = hidden.dims();
        let ids: Vec<i64> = ids.into_data().iter().collect();
        let rows = ids.chunks(tokens).enumerate().map(|(row, ids)| {
            let place = self.config.pooled_position(ids);
            let state = hidden.clone().narrow(0, row, 1).narrow(1, place, 1);
            state.reshape([1, dim])
        });
        let rows: Vec<Tensor<2>> = rows.collect();
        debug_assert_eq!(rows.len(), batch);
        Tensor::cat(rows, 0)
    }
}

impl Embeddings {
    /// # Shapes
    /// * ids: `[B, T]`
    /// * output: `[B, T, D]`
    fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [_, tokens] = ids.dims();
        let positions = self.position_embedding.weight.val().narrow(0, 0, tokens);
        self.token_embedding.forward(ids) + positions.unsqueeze()
    }
}
