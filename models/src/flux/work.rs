use super::{FluxTransformer, FluxTransformerConfig};
use crate::weights::Pretrained;
use crate::work::{Tokens, Work};

impl FluxTransformerConfig {
    /// One evaluation for one sample, all blocks on all tokens.
    pub(crate) fn work(&self, tokens: Tokens) -> Work {
        let blocks = (self.num_layers + self.num_single_layers) as u64;
        let table = FluxTransformer::table(self);
        let weights = Work::from(table.multiply_adds(|name| Self::places(name, tokens)));
        weights + Work::attention(tokens.all(), tokens.all(), self.inner_dim()) * blocks
    }

    /// How many rows the layer or tensor called `name` is applied to.
    pub(crate) fn places(name: &str, tokens: Tokens) -> u64 {
        let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        if has(&[
            "time_text_embed",
            "norm1.",
            "norm1_context.",
            ".norm.",
            "norm_out",
        ]) {
            // Modulation is the same for all tokens.
            return 1;
        }
        if name.starts_with("single_transformer_blocks.") {
            return tokens.all();
        }
        match has(&["context_embedder", ".add_", ".to_add_out", ".ff_context."]) {
            true => tokens.text,
            false => tokens.image,
        }
    }
}
