use super::{QwenImageTransformer, QwenImageTransformerConfig};
use crate::weights::Pretrained;
use crate::work::{Tokens, Work};

impl QwenImageTransformerConfig {
    /// One evaluation for one sample, all blocks on all tokens.
    pub(crate) fn work(&self, tokens: Tokens) -> Work {
        let table = QwenImageTransformer::table(self);
        let weights = Work::from(table.multiply_adds(|name| Self::places(name, tokens)));
        weights
            + Work::attention(tokens.all(), tokens.all(), self.inner_dim()) * self.num_layers as u64
    }

    /// How many rows the layer or tensor called `name` is applied to.
    pub(crate) fn places(name: &str, tokens: Tokens) -> u64 {
        let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        if has(&["time_text_embed", ".img_mod.", ".txt_mod.", "norm_out"]) {
            // Modulation is the same for all tokens.
            return 1;
        }
        match has(&["txt_in", ".txt_mlp.", ".add_", ".to_add_out"]) {
            true => tokens.text,
            false => tokens.image,
        }
    }
}
