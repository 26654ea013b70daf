//! A tiny editor of the other architecture: Qwen-Image-Edit-2509's, at a few hundred thousand parameters. It is never
//! trained; runs on it show that nothing depends on the base model.

use std::path::Path;

use burn::tensor::Device;
use retouch_models::autoencoder_kl_qwen_image::{
    AutoencoderKlQwenImage, AutoencoderKlQwenImageConfig,
};
use retouch_models::editor::{Editor, QwenImageEdit, QwenImageEditEncoders};
use retouch_models::init::Init;
use retouch_models::qwen_image::{QwenImageTransformer, QwenImageTransformerConfig};
use retouch_models::qwen2_5_vl::{Qwen2_5Vl, Qwen2_5VlConfig};
use retouch_models::scheduler::FlowMatchScheduler;
use retouch_models::tokenizer::Tokenizer;
use retouch_models::weights::{LoadError, Pretrained};
use serde_json::json;

use crate::judge::{MERGE_SIZE, PATCH_SIZE, image_processor};
use crate::scene::IMAGE_SIZE;
use crate::tokenizer::Family;

/// Channels of a latent.
const LATENT_CHANNELS: usize = 4;

/// Width of the text encoder.
const TEXT_WIDTH: usize = 64;

/// Longest conversation, of which the images are at most 48 tokens.
const TOKENS_MAX: usize = 512;

/// A random editor from `seed`: all its code paths work, and it can edit nothing.
///
/// # Errors
/// Never with the parts as they are here.
pub fn new(seed: u64, device: &Device) -> Result<Editor, LoadError> {
    let init = |part: u64| Init::new(seed.wrapping_add(part << 32), device);
    let encoders = QwenImageEditEncoders::new(
        AutoencoderKlQwenImage::init(&vae_config(), &init(1)),
        Qwen2_5Vl::init(&text_config(), &init(2)),
        Tokenizer::new(
            Family::Qwen.tokenizer(),
            Family::Qwen.padding_id(),
            TOKENS_MAX,
        ),
        image_processor(),
    )?;
    let transformer = QwenImageTransformer::init(&transformer_config(), &init(3));
    let base = QwenImageEdit::new(transformer, encoders);
    Ok(Editor::new(base, scheduler(), device))
}

/// Writes a random editor as a diffusers pipeline folder.
///
/// # Errors
/// If the folder can't be written.
pub fn init(folder: &Path, seed: u64) -> Result<(), LoadError> {
    new(seed, &Device::flex())?.save(folder)
}

/// Latents of a quarter of the resolution, so that 64 x 64 pixels are 64 packed tokens.
fn vae_config() -> AutoencoderKlQwenImageConfig {
    AutoencoderKlQwenImageConfig {
        base_dim: 8,
        z_dim: LATENT_CHANNELS,
        dim_mult: vec![1, 2, 2],
        num_res_blocks: 1,
        temperal_downsample: vec![false, true],
        latents_mean: vec![0.0; LATENT_CHANNELS],
        latents_std: vec![1.0; LATENT_CHANNELS],
        ..AutoencoderKlQwenImageConfig::default()
    }
}

fn transformer_config() -> QwenImageTransformerConfig {
    QwenImageTransformerConfig {
        in_channels: 4 * LATENT_CHANNELS,
        out_channels: Some(LATENT_CHANNELS),
        num_layers: 2,
        attention_head_dim: 16,
        num_attention_heads: 4,
        joint_attention_dim: TEXT_WIDTH,
        axes_dims_rope: [4, 6, 6],
        ..QwenImageTransformerConfig::default()
    }
}

fn text_config() -> Qwen2_5VlConfig {
    let config = json!({
        "vocab_size": Family::Qwen.vocab_size(),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": TOKENS_MAX,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "rope_scaling": { "type": "mrope", "mrope_section": [2, 3, 3] },
        "vision_config": {
            "depth": 2,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 2 * TEXT_WIDTH,
            "num_heads": 4,
            "out_hidden_size": TEXT_WIDTH,
            "patch_size": PATCH_SIZE,
            "temporal_patch_size": 2,
            "spatial_merge_size": MERGE_SIZE,
            "window_size": IMAGE_SIZE / 2,
            "fullatt_block_indexes": [1],
        },
        "image_token_id": Family::Qwen.id("<|image_pad|>"),
        "vision_start_token_id": Family::Qwen.id("<|vision_start|>"),
        "vision_end_token_id": Family::Qwen.id("<|vision_end|>"),
        "tie_word_embeddings": true,
    });
    serde_json::from_value(config).expect("a sound configuration")
}

/// The published schedule: the shift is linear in the number of tokens, and the last level is stretched to 0.02.
fn scheduler() -> FlowMatchScheduler {
    let mut scheduler = FlowMatchScheduler::default();
    scheduler.use_dynamic_shifting = true;
    scheduler.max_image_seq_len = 8192;
    scheduler.max_shift = 0.9;
    scheduler.shift_terminal = Some(0.02);
    scheduler
}

#[cfg(test)]
mod tests {
    use retouch_dataset::Split;
    use retouch_models::editor::{EditRequest, Parts, SampleOptions, SourceSize};
    use retouch_models::solver::Solver;

    use super::*;
    use crate::editor::SIZE;
    use crate::editor::tests::two_edits_differ;
    use crate::generate;

    #[test]
    fn a_new_editor_is_written_read_and_asked_about_three_images() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        init(folder.path(), 1).expect("a written editor");
        let device = Device::flex();
        let editor = Editor::load(folder.path(), &device, Parts::All).expect("an editor");
        let case = |index| generate::case(1, Split::Test, index);
        let options = SampleOptions {
            num_inference_steps: 2,
            solver: Solver::Dpm2,
            guidance_scale: 1.0,
            true_cfg_scale: 2.0,
        };
        let condition = editor
            .encode_request(&EditRequest {
                prompt: &case(2).prompt(),
                negative_prompt: options.negative_prompt(),
                sources: &[2, 3, 4].map(|index| case(index).source_image()),
                source_size: SourceSize::Result,
                size: SIZE,
                max_sequence_length: 17,
            })
            .expect("a condition");
        assert_eq!(editor.latent_shape(SIZE), [64, 16]);
        assert_eq!(condition.image_latents.dims(), [3 * 64, 16]);
        two_edits_differ(&editor, &condition, &options);
    }
}
