//! The language model: `Qwen2_5_VLTextModel`.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};

use super::config::TextConfig;
use super::layers::{LayerInit, Mlp, row_indices, rows};
use super::rope::{RopeTable, TextRope};
use crate::init::Init;
use crate::layers::{Embedding, Linear, RmsNorm};
use crate::ops::{self, AttentionMask};

/// The decoder.
#[derive(Module, Debug)]
pub struct LanguageModel {
    embed_tokens: Embedding,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    #[module(skip)]
    config: TextConfig,
}

#[derive(Module, Debug)]
struct DecoderLayer {
    self_attn: Attention,
    mlp: Mlp,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
}

#[derive(Module, Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    kv_heads: usize,
}

/// Keys and values of one layer, `[B, kv_heads, S, head_dim]` each.
#[derive(Clone, Debug)]
struct KeyValue {
    k: Tensor<4>,
    v: Tensor<4>,
}

/// What a prefix leaves behind for the tokens after it: keys and values of every layer.
#[derive(Clone, Debug)]
pub struct PrefixCache {
    layers: Vec<KeyValue>,
}

/// A batch of token rows on their way through the decoder.
pub struct Sequence<'a> {
    /// Embeddings of S tokens per row: `[B, S, hidden]`.
    pub embeds: Tensor<3>,
    /// Temporal, height and width position of each token, row after row; or those of one row, if all have the same.
    pub positions: &'a [[usize; 3]],
    /// Which keys a token sees; the keys are those of the prefix, if any, then the S of the sequence.
    pub mask: AttentionMask,
    /// Keys and values of the tokens before, of B rows.
    pub prefix: Option<PrefixCache>,
}

impl LanguageModel {
    /// A decoder with random weights.
    pub fn init(config: &TextConfig, init: &Init) -> Self {
        let layers = &LayerInit {
            init,
            std: config.initializer_range,
        };
        Self {
            embed_tokens: Embedding::init(
                config.vocab_size,
                config.hidden_size,
                config.initializer_range,
                init,
            ),
            layers: (0..config.num_hidden_layers)
                .map(|_| DecoderLayer::init(config, layers))
                .collect(),
            norm: layers.norm(config.hidden_size, config.rms_norm_eps),
            config: config.clone(),
        }
    }

    /// The configuration it was made from.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// The embedding matrix: `[vocab, hidden]`.
    pub fn embedding(&self) -> Tensor<2> {
        self.embed_tokens.weight.val()
    }

    /// The same with another embedding matrix.
    #[cfg(test)]
    pub(crate) fn with_embedding(mut self, weight: Tensor<2>) -> Self {
        self.embed_tokens.weight = self.embed_tokens.weight.map(|_| weight);
        self
    }

    /// Runs the tokens that many sequences share, once.
    pub fn prefill(&self, sequence: Sequence<'_>) -> PrefixCache {
        let run = Run::new(self, &sequence);
        let mut x = sequence.embeds;
        let mut cache = Vec::with_capacity(self.layers.len());
        let (last, before) = self.layers.split_last().expect("a model has layers");
        for layer in before {
            let normed = layer.input_layernorm.forward(x.clone());
            let own = layer.self_attn.key_value(normed.clone(), &run.rope);
            x = layer.forward(x, normed, &own, &run.rope, &sequence.mask);
            cache.push(own);
        }
        let normed = last.input_layernorm.forward(x);
        cache.push(last.self_attn.key_value(normed, &run.rope));
        PrefixCache { layers: cache }
    }

    /// The normalised output at one token of each row.
    ///
    /// The last layer's queries and MLP are computed for that token alone, which changes nothing for it.
    ///
    /// # Shapes
    /// * last: the index of that token in each of the B rows
    /// * output: `[B, hidden]`
    pub fn last_hidden(&self, sequence: Sequence<'_>, last: &[usize]) -> Tensor<2> {
        let [batch, length, hidden] = sequence.embeds.dims();
        let state = self.before_last_layer(sequence);
        let picked: Vec<usize> = (0..batch).map(|row| row * length + last[row]).collect();
        let pick = |x: Tensor<3>| {
            let x = x.reshape([batch * length, hidden]);
            rows(x, &picked).reshape([batch, 1, hidden])
        };
        let rope = state.run.rope.at(last, batch);
        let mask = last_token_mask(&state.mask, state.run.prefix_length(), last);
        let (x, normed) = (pick(state.x), pick(state.normed));
        let x = self
            .last_layer()
            .forward(x, normed, &state.keys, &rope, &mask);
        self.norm.forward(x.reshape([batch, hidden]))
    }

    /// The normalised output at every token.
    ///
    /// # Shapes
    /// * output: `[B, S, hidden]`
    pub fn hidden(&self, sequence: Sequence<'_>) -> Tensor<3> {
        let state = self.before_last_layer(sequence);
        let (rope, mask) = (&state.run.rope, &state.mask);
        let layer = self.last_layer();
        self.norm
            .forward(layer.forward(state.x, state.normed, &state.keys, rope, mask))
    }

    fn last_layer(&self) -> &DecoderLayer {
        self.layers.last().expect("a model has layers")
    }

    /// Runs all layers but the last, and of that the keys and values.
    fn before_last_layer(&self, sequence: Sequence<'_>) -> LastLayerInput {
        let run = Run::new(self, &sequence);
        let mut x = sequence.embeds;
        let last = self.layers.len() - 1;
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = layer.input_layernorm.forward(x.clone());
            let own = layer.self_attn.key_value(normed.clone(), &run.rope);
            let keys = run.with_prefix(index, own);
            if index == last {
                return LastLayerInput {
                    x,
                    normed,
                    keys,
                    mask: sequence.mask,
                    run,
                };
            }
            x = layer.forward(x, normed, &keys, &run.rope, &sequence.mask);
        }
        unreachable!("a model has layers")
    }
}

/// What the last layer's queries and MLP start from.
struct LastLayerInput {
    x: Tensor<3>,
    normed: Tensor<3>,
    keys: KeyValue,
    mask: AttentionMask,
    run: Run,
}

/// The keys that the token at `last[row]` sees.
fn last_token_mask(mask: &AttentionMask, prefix_length: usize, last: &[usize]) -> AttentionMask {
    let start = match mask {
        AttentionMask::CausalKeyRange { start, .. } => start.clone(),
        _ => vec![0; last.len()],
    };
    AttentionMask::CausalKeyRange {
        start,
        end: last.iter().map(|last| prefix_length + last + 1).collect(),
    }
}

/// What stays the same in all layers of one pass.
struct Run {
    rope: RopeTable,
    prefix: Option<PrefixCache>,
}

impl Run {
    fn new(model: &LanguageModel, sequence: &Sequence<'_>) -> Self {
        let [_, length, _] = sequence.embeds.dims();
        let (device, dtype) = (sequence.embeds.device(), sequence.embeds.dtype());
        Self {
            rope: model.rope(sequence.positions, length, &device, dtype),
            prefix: sequence.prefix.clone(),
        }
    }

    fn prefix_length(&self) -> usize {
        self.prefix
            .as_ref()
            .map_or(0, |prefix| prefix.layers[0].k.dims()[2])
    }

    fn with_prefix(&self, layer: usize, own: KeyValue) -> KeyValue {
        let Some(prefix) = &self.prefix else {
            return own;
        };
        let prefix = prefix.layers[layer].clone();
        KeyValue {
            k: Tensor::cat(vec![prefix.k, own.k], 2),
            v: Tensor::cat(vec![prefix.v, own.v], 2),
        }
    }
}

impl LanguageModel {
    fn rope(
        &self,
        positions: &[[usize; 3]],
        length: usize,
        device: &Device,
        dtype: DType,
    ) -> RopeTable {
        let rope = TextRope::new(self.config.rope_theta, &self.config.mrope_section);
        RopeTable::text(positions, positions.len() / length, &rope, device, dtype)
    }
}

impl PrefixCache {
    /// The cache with a row for each of `rows`, which names rows of this one.
    pub fn rows(&self, indices: &[usize]) -> Self {
        let indices = row_indices(indices, &self.layers[0].k.device());
        let select = |x: &Tensor<4>| x.clone().select(0, indices.clone());
        let layers = self.layers.iter().map(|layer| KeyValue {
            k: select(&layer.k),
            v: select(&layer.v),
        });
        Self {
            layers: layers.collect(),
        }
    }
}

impl DecoderLayer {
    fn init(config: &TextConfig, layers: &LayerInit<'_>) -> Self {
        let (hidden, eps) = (config.hidden_size, config.rms_norm_eps);
        Self {
            self_attn: Attention::init(config, layers),
            mlp: layers.mlp(hidden, config.intermediate_size),
            input_layernorm: layers.norm(hidden, eps),
            post_attention_layernorm: layers.norm(hidden, eps),
        }
    }

    /// # Shapes
    /// * x, normed (`input_layernorm` of x) and output: `[B, S, hidden]`
    fn forward(
        &self,
        x: Tensor<3>,
        normed: Tensor<3>,
        keys: &KeyValue,
        rope: &RopeTable,
        mask: &AttentionMask,
    ) -> Tensor<3> {
        let x = x + self.self_attn.forward(normed, keys, rope, mask);
        let mlp = self
            .mlp
            .forward(self.post_attention_layernorm.forward(x.clone()));
        x + mlp
    }
}

impl Attention {
    fn init(config: &TextConfig, layers: &LayerInit<'_>) -> Self {
        let hidden = config.hidden_size;
        let kv_features = config.num_key_value_heads * config.head_dim();
        Self {
            q_proj: layers.linear(hidden, hidden),
            k_proj: layers.linear(hidden, kv_features),
            v_proj: layers.linear(hidden, kv_features),
            o_proj: layers.linear_no_bias(hidden, hidden),
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
        }
    }

    /// # Shapes
    /// * x: `[B, S, hidden]`
    fn key_value(&self, x: Tensor<3>, rope: &RopeTable) -> KeyValue {
        let k = ops::split_heads(self.k_proj.forward(x.clone()), self.kv_heads);
        KeyValue {
            k: ops::rope_half(k, rope.cos.clone(), rope.sin.clone()),
            v: ops::split_heads(self.v_proj.forward(x), self.kv_heads),
        }
    }

    /// # Shapes
    /// * x and output: `[B, S, hidden]`
    fn forward(
        &self,
        x: Tensor<3>,
        keys: &KeyValue,
        rope: &RopeTable,
        mask: &AttentionMask,
    ) -> Tensor<3> {
        let q = ops::split_heads(self.q_proj.forward(x), self.heads);
        let q = ops::rope_half(q, rope.cos.clone(), rope.sin.clone());
        let scale = (q.dims()[3] as f32).sqrt().recip();
        let (k, v) = (keys.k.clone(), keys.v.clone());
        self.o_proj.forward(ops::attention(q, k, v, mask, scale))
    }
}
