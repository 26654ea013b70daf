//! What a reward worker needs for a Qwen2.5-VL judge.

use std::path::Path;

use super::memory::{MemoryLine, Workload};
use crate::image_processor::ImageProcessor;
use crate::qwen2_5_vl::{Qwen2_5Vl, Qwen2_5VlConfig};
use crate::weights::LoadError;

/// Bytes of a number on its way through a network: kernels compute in f32.
const COMPUTED: u64 = 4;
/// Tokens of the template, the instruction and the requirement.
const TEXT_TOKENS: u64 = 256;
/// Widths of a token in the decoder, over the hidden and over the inner width of its MLP.
const DECODER_WIDTHS: [u64; 2] = [6, 3];
/// The same of a patch in the vision tower.
const VISION_WIDTHS: [u64; 2] = [8, 3];

pub(super) fn reward(folder: &Path, workload: &Workload) -> Result<Vec<MemoryLine>, LoadError> {
    let config = Qwen2_5VlConfig::load(folder)?;
    let processor = ImageProcessor::load(folder)?;
    let [height, width] = processor.target_size(workload.size.height, workload.size.width);
    let side = config.vision.patch_size;
    let patches = ((height / side) * (width / side)) as u64;
    let image_tokens = patches / config.vision.merge_unit() as u64;
    let edits = workload.group_size as u64;
    let (text, vision, size) = (&config.text, &config.vision, workload.dtype.size() as u64);
    let key_value = 2 * (text.num_key_value_heads * text.head_dim()) as u64;
    let cache = [
        (edits, "edits"),
        (TEXT_TOKENS + image_tokens, "tokens before the edit"),
        (text.num_hidden_layers as u64, "layers"),
        (key_value, "keys and values"),
        (size, "B"),
    ];
    let wide = |[hidden, inner]: [u64; 2], a: usize, b: usize| hidden * a as u64 + inner * b as u64;
    let decoder = [
        (edits, "edits"),
        (TEXT_TOKENS + image_tokens, "tokens of the edit"),
        (
            wide(DECODER_WIDTHS, text.hidden_size, text.intermediate_size),
            "numbers",
        ),
        (COMPUTED, "B (f32)"),
    ];
    let tower = [
        (edits + 1, "images"),
        (patches, "patches"),
        (
            wide(VISION_WIDTHS, vision.hidden_size, vision.intermediate_size),
            "numbers",
        ),
        (COMPUTED, "B (f32)"),
    ];
    let decoder = MemoryLine::product("the decoder's hidden states", &decoder);
    let tower = MemoryLine::product("the vision tower's hidden states", &tower);
    Ok(vec![
        MemoryLine::weights(
            "model",
            Qwen2_5Vl::table(&config).parameters(),
            workload.dtype,
        ),
        MemoryLine::product("keys and values of the shared prefix", &cache),
        if tower.bytes > decoder.bytes {
            tower
        } else {
            decoder
        },
    ])
}
