use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::T5Config;
use crate::init::Init;
use crate::layers::{Embedding, Linear};
use crate::ops::{self, AttentionMask};

/// Attention without scaling, with a bias that depends on the distance of the tokens.
#[derive(Module, Debug)]
pub(super) struct T5Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// In the first layer only; all others use the same bias.
    relative_attention_bias: Option<Embedding>,
    heads: usize,
    num_buckets: usize,
    max_distance: usize,
}

impl T5Attention {
    pub(super) fn init(config: &T5Config, layer: usize, init: &Init) -> Self {
        let (dim, inner) = (config.d_model, config.num_heads * config.d_kv);
        let num_buckets = config.relative_attention_num_buckets;
        let bias = || Embedding::init(num_buckets, config.num_heads, 1.0, init);
        let linear = || Linear::init_no_bias(dim, inner, init);
        Self {
            q: linear(),
            k: linear(),
            v: linear(),
            o: Linear::init_no_bias(inner, dim, init),
            relative_attention_bias: (layer == 0).then(bias),
            heads: config.num_heads,
            num_buckets,
            max_distance: config.relative_attention_max_distance,
        }
    }

    /// # Shapes
    /// * x and output: `[B, T, D]`
    /// * bias: `[B or 1, heads, T, T]`
    pub(super) fn forward(&self, x: Tensor<3>, bias: Tensor<4>) -> Tensor<3> {
        let head = |linear: &Linear| ops::split_heads(linear.forward(x.clone()), self.heads);
        let (q, k, v) = (head(&self.q), head(&self.k), head(&self.v));
        self.o.forward(ops::attention_with_bias(
            q,
            k,
            v,
            bias,
            &AttentionMask::None,
            1.0,
        ))
    }

    /// The bias of `tokens` tokens, where this layer has it.
    ///
    /// # Shapes
    /// * output: `[1, heads, T, T]`
    pub(super) fn position_bias(&self, tokens: usize, device: &Device) -> Option<Tensor<4>> {
        let table = self.relative_attention_bias.as_ref()?;
        let bucket = |place: usize| self.bucket((place % tokens) as i64 - (place / tokens) as i64);
        let buckets: Vec<i64> = (0..tokens * tokens).map(bucket).collect();
        let buckets = TensorData::new(buckets, [tokens, tokens]);
        let bias = table.forward(Tensor::<2, Int>::from_data(buckets, device));
        Some(bias.permute([2, 0, 1]).unsqueeze_dim(0))
    }

    /// The class of the distance from a query to a key: exact when near, logarithmic when far, and
    /// in the upper half when the key comes after the query.
    fn bucket(&self, distance: i64) -> i64 {
        let buckets = self.num_buckets / 2;
        let exact = buckets / 2;
        let near = distance.unsigned_abs() as usize;
        let bucket = if near < exact {
            near
        } else {
            // In f32, as the reference: some distances lie exactly on a border.
            let octaves = (near as f32 / exact as f32).ln();
            let range = (self.max_distance as f64 / exact as f64).ln() as f32;
            let far = octaves / range * (buckets - exact) as f32;
            (exact + far as usize).min(buckets - 1)
        };
        (bucket + if distance > 0 { buckets } else { 0 }) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_distances_have_their_own_class_and_far_ones_share() {
        let attention = T5Attention::init(&T5Config::default(), 0, &Init::new(0, &Device::flex()));
        assert_eq!(
            [0, -1, 1, -7, 7].map(|d| attention.bucket(d)),
            [0, 1, 17, 7, 23]
        );
        assert_eq!(
            [-8, -16, -32, -64, -127, -1000].map(|d| attention.bucket(d)),
            [8, 10, 12, 14, 15, 15]
        );
    }
}
