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

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiply-adds by hand: 12 D^2 with weights a token, 2 N^2 D of attention a block.
    #[test]
    fn a_velocity_takes_what_the_published_sizes_say() {
        let (dim, image, text) = (3072, 2 * 32 * 32, 14 * 14 + 128);
        let all = image + text;
        let blocks = 60 * (12 * dim * dim * all + 2 * all * all * dim);
        let modulation = 60 * 12 * dim * dim + 2 * dim * dim;
        let time = 256 * dim + dim * dim;
        let ends = 2 * 64 * dim * image + 3584 * dim * text;
        let work = QwenImageTransformerConfig::default().work(Tokens { image, text });
        assert_eq!(work.flops(), 2 * (blocks + modulation + time + ends));
    }
}
