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

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiply-adds by hand: 12 D^2 with weights a token, 2 N^2 D of attention a block.
    #[test]
    fn a_velocity_takes_what_the_published_sizes_say() {
        let (dim, image, text) = (3072, 2 * 32 * 32, 128);
        let all = image + text;
        let blocks = 57 * (12 * dim * dim * all + 2 * all * all * dim);
        let modulation = 19 * 12 * dim * dim + 38 * 3 * dim * dim + 2 * dim * dim;
        let time = 2 * (256 * dim + dim * dim) + 768 * dim + dim * dim;
        let ends = 2 * 64 * dim * image + 4096 * dim * text;
        let work = FluxTransformerConfig {
            guidance_embeds: true,
            ..FluxTransformerConfig::default()
        }
        .work(Tokens { image, text });
        assert_eq!(work.flops(), 2 * (blocks + modulation + time + ends));
    }
}
