//! Qwen2.5-VL: transformers' `Qwen2_5_VLForConditionalGeneration`, prefill only.
//!
//! Images are cut into patches ([`image_processor`](crate::image_processor)), the [`VisionTower`] turns each 2 x 2
//! patches into a token, and the [`LanguageModel`] reads them between the text's. Only the output after the last token
//! is computed: a judge needs no decoding. The module trains as well as it infers; nothing in it is specific to a size.

mod config;
mod grid;
mod language;
mod layers;
mod names;
mod rope;
mod tokens;
mod vision;
mod work;

pub use config::{Activation, Qwen2_5VlConfig, TextConfig, VisionConfig};
pub use grid::Grid;
pub use language::{LanguageModel, PrefixCache, Sequence};
pub use tokens::{ImageTokens, Slot, TokenRows};
pub use vision::VisionTower;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};

use crate::init::Init;
use crate::ops::{self, AttentionMask};
use crate::weights::{LoadError, Names, Pretrained, TRANSFORMERS_FILE, Weights};
pub(crate) use layers::rows;

/// The model: vision tower, decoder, output layer.
#[derive(Module, Debug)]
pub struct Qwen2_5Vl {
    /// Images to tokens.
    pub visual: VisionTower,
    /// Tokens to hidden states.
    pub language_model: LanguageModel,
    lm_head: Option<OutputLayer>,
    #[module(skip)]
    config: Qwen2_5VlConfig,
}

#[derive(Module, Debug)]
struct OutputLayer {
    /// `[vocab, hidden]`
    weight: Param<Tensor<2>>,
}

impl Pretrained for Qwen2_5Vl {
    type Config = Qwen2_5VlConfig;

    const FILE: &'static str = TRANSFORMERS_FILE;

    fn init(config: &Qwen2_5VlConfig, init: &Init) -> Self {
        let text = &config.text;
        let lm_head = (!config.tie_word_embeddings).then(|| OutputLayer {
            weight: init.normal([text.vocab_size, text.hidden_size], text.initializer_range),
        });
        Self {
            visual: VisionTower::init(&config.vision, init),
            language_model: LanguageModel::init(text, init),
            lm_head,
            config: config.clone(),
        }
    }

    fn config(&self) -> &Qwen2_5VlConfig {
        &self.config
    }

    fn names(config: &Qwen2_5VlConfig) -> Names {
        names::published(config.tie_word_embeddings)
    }

    fn names_in(config: &Qwen2_5VlConfig, weights: &Weights) -> Names {
        names::of_model(weights, config.tie_word_embeddings)
    }
}

impl Qwen2_5Vl {
    /// Which tokens stand for images.
    pub fn image_tokens(&self) -> ImageTokens {
        ImageTokens {
            token_id: self.config.image_token_id,
            merge_size: self.config.vision.spatial_merge_size,
        }
    }

    /// The logits of the token after each row's last real one.
    ///
    /// # Shapes
    /// * tokens: B rows of S tokens, padded on either side
    /// * pixel_values: `[N, channels * frames * patch * patch]`, the images in the order of their tokens
    /// * output: `[B, vocab]`
    pub fn forward(
        &self,
        tokens: &TokenRows,
        pixel_values: Option<Tensor<2>>,
        grids: &[Grid],
    ) -> Tensor<2> {
        let features = pixel_values.map(|pixels| self.visual.forward(pixels, grids));
        let embeds = self.embed(&tokens.slots(self.image_tokens()), features);
        let hidden = embeds.dims()[1];
        let real = tokens.real();
        let last: Vec<usize> = real.iter().map(|real| real.end - 1).collect();
        let sequence = Sequence {
            embeds: embeds.reshape([tokens.batch, tokens.length(), hidden]),
            positions: &tokens.rope_index(grids, self.image_tokens()),
            mask: AttentionMask::CausalKeyRange {
                start: real.iter().map(|real| real.start).collect(),
                end: real.iter().map(|real| real.end).collect(),
            },
            prefix: None,
        };
        self.logits(self.language_model.last_hidden(sequence, &last))
    }

    /// The normalised output at every token of rows without padding, each token standing at its position.
    ///
    /// # Shapes
    /// * tokens: B rows of S tokens, none of them padding
    /// * pixel_values: as in [`Qwen2_5Vl::forward`]
    /// * positions: temporal, height and width position of each token, row after row
    /// * output: `[B, S, hidden]`
    pub fn hidden_states(
        &self,
        tokens: &TokenRows,
        pixel_values: Option<Tensor<2>>,
        grids: &[Grid],
        positions: &[[usize; 3]],
    ) -> Tensor<3> {
        let features = pixel_values.map(|pixels| self.visual.forward(pixels, grids));
        let embeds = self.embed(&tokens.slots(self.image_tokens()), features);
        let hidden = embeds.dims()[1];
        self.language_model.hidden(Sequence {
            embeds: embeds.reshape([tokens.batch, tokens.length(), hidden]),
            positions,
            mask: AttentionMask::Causal,
            prefix: None,
        })
    }

    /// The embeddings of tokens, those of images being rows of `features`.
    ///
    /// # Shapes
    /// * features: `[image tokens, hidden]`
    /// * output: `[slots.len(), hidden]`
    pub fn embed(&self, slots: &[Slot], features: Option<Tensor<2>>) -> Tensor<2> {
        let mut ids = Vec::new();
        let mut order = Vec::with_capacity(slots.len());
        let text_count = slots
            .iter()
            .filter(|slot| matches!(slot, Slot::Text(_)))
            .count();
        for slot in slots {
            match slot {
                Slot::Text(id) => {
                    order.push(ids.len());
                    ids.push(*id as usize);
                }
                Slot::Image(row) => order.push(text_count + row),
            }
        }
        let text = rows(self.language_model.embedding(), &ids);
        match features {
            None => text,
            Some(features) => rows(Tensor::cat(vec![text, features], 0), &order),
        }
    }

    /// # Shapes
    /// * hidden: `[B, hidden]`
    /// * output: `[B, vocab]`
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        ops::linear(hidden, self.output_weight(), None)
    }

    /// The logits of some tokens only.
    ///
    /// # Shapes
    /// * hidden: `[B, hidden]`
    /// * output: `[B, ids.len()]`
    pub fn logits_of(&self, hidden: Tensor<2>, ids: &[u32]) -> Tensor<2> {
        let ids: Vec<usize> = ids.iter().map(|id| *id as usize).collect();
        ops::linear(hidden, rows(self.output_weight(), &ids), None)
    }

    fn output_weight(&self) -> Tensor<2> {
        match &self.lm_head {
            Some(layer) => layer.weight.val(),
            None => self.language_model.embedding(),
        }
    }
}

impl VisionTower {
    /// Takes the weights from a file of its own or of a whole model.
    ///
    /// # Errors
    /// If the tensors do not fit the configuration.
    pub fn from_weights(
        config: &VisionConfig,
        weights: &Weights,
        device: &Device,
        dtype: DType,
    ) -> Result<Self, LoadError> {
        let module = Self::init(config, &Init::new(0, device));
        weights.load_as(module, &names::of_vision(weights), dtype)
    }
}

#[cfg(test)]
mod tests;
