use burn::module::Module;
use burn::tensor::{Int, Tensor};

use super::ClipTextConfig;
use super::encoder_layer::EncoderLayer;
use crate::init::Init;
use crate::layers::{Embedding, LayerNorm};
use crate::weights::{Names, Pretrained, TRANSFORMERS_FILE, Weights};

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

impl Pretrained for ClipText {
    type Config = ClipTextConfig;

    const FILE: &'static str = TRANSFORMERS_FILE;

    fn init(config: &ClipTextConfig, init: &Init) -> Self {
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

    fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    fn names(_config: &ClipTextConfig) -> Names {
        NAMES
    }

    /// Newer files leave out the `text_model.` that published ones have.
    fn names_in(_config: &ClipTextConfig, weights: &Weights) -> Names {
        match weights.names().any(|name| name.starts_with("text_model.")) {
            true => NAMES,
            false => NAMES_WITHOUT_PREFIX,
        }
    }
}

impl ClipText {
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
