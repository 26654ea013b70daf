use super::{ClipText, ClipTextConfig};
use crate::weights::Pretrained;
use crate::work::Work;

impl ClipTextConfig {
    /// The encoding of one text, which is always padded to all positions.
    pub(crate) fn work(&self) -> Work {
        let tokens = self.max_position_embeddings as u64;
        // Embeddings are looked up.
        let places = |name: &str| match name.contains("embeddings.") {
            true => 0,
            false => tokens,
        };
        let attention = Work::causal_attention(tokens, 0, self.hidden_size);
        let weights = ClipText::table(self).multiply_adds(places);
        Work::from(weights) + attention * self.num_hidden_layers as u64
    }
}
