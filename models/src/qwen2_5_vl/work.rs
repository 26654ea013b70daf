use super::{Qwen2_5Vl, Qwen2_5VlConfig};
use crate::weights::Pretrained;
use crate::work::Work;

impl Qwen2_5VlConfig {
    /// One image of so many patches through the vision tower.
    pub(crate) fn vision_work(&self, patches: u64) -> Work {
        let vision = &self.vision;
        let places = |name: &str| match name {
            name if name.starts_with("visual.merger.") => patches / vision.merge_unit() as u64,
            name if name.starts_with("visual.") => patches,
            _ => 0,
        };
        let side = vision.window_size / vision.patch_size;
        let window = patches.min((side * side) as u64);
        let whole = vision.fullatt_block_indexes.len().min(vision.depth);
        let attention = |keys, blocks: usize| {
            Work::attention(patches, keys, vision.hidden_size) * blocks as u64
        };
        let weights = Qwen2_5Vl::table(self).multiply_adds(places);
        Work::from(weights) + attention(patches, whole) + attention(window, vision.depth - whole)
    }

    /// `tokens` through the decoder behind `before` others, whose keys and values are kept; few logits are asked for.
    pub(crate) fn language_work(&self, tokens: u64, before: u64) -> Work {
        let text = &self.text;
        let places = |name: &str| match name.contains(".layers.") {
            true => tokens,
            false => 0,
        };
        let width = text.num_attention_heads * text.head_dim();
        let attention = Work::causal_attention(tokens, before, width);
        let weights = Qwen2_5Vl::table(self).multiply_adds(places);
        Work::from(weights) + attention * text.num_hidden_layers as u64
    }
}
