use super::{T5Config, T5Encoder};
use crate::weights::Pretrained;
use crate::work::Work;

impl T5Config {
    /// The encoding of one text of so many tokens.
    pub(crate) fn work(&self, tokens: u64) -> Work {
        // Embeddings and position biases are looked up.
        let places = |name: &str| match name.ends_with("shared.weight")
            || name.contains("relative_attention_bias")
        {
            true => 0,
            false => tokens,
        };
        let attention = Work::attention(tokens, tokens, self.num_heads * self.d_kv);
        let weights = T5Encoder::table(self).multiply_adds(places);
        Work::from(weights) + attention * self.num_layers as u64
    }
}
