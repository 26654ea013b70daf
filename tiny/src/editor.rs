//! The tiny editor: FLUX.1-Kontext's architecture at about two million parameters.

use std::path::Path;

use burn::tensor::Device;
use retouch_models::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use retouch_models::clip::{ClipText, ClipTextConfig, HiddenAct};
use retouch_models::editor::{Editor, FluxKontext, FluxKontextEncoders, ImageSize};
use retouch_models::flux::{FluxTransformer, FluxTransformerConfig};
use retouch_models::init::Init;
use retouch_models::scheduler::FlowMatchScheduler;
use retouch_models::t5::{T5Config, T5Encoder};
use retouch_models::tokenizer::Tokenizer;
use retouch_models::weights::{LoadError, Pretrained};

use crate::scene::IMAGE_SIZE;
use crate::tokenizer::Family;

/// The size of the editor's pictures.
pub const SIZE: ImageSize = ImageSize {
    height: IMAGE_SIZE as usize,
    width: IMAGE_SIZE as usize,
};

/// Prompt tokens, for CLIP and for T5: the longest instruction and the special tokens fit.
pub const MAX_SEQUENCE_LENGTH: usize = 17;

/// Channels of a latent.
const LATENT_CHANNELS: usize = 8;

/// Width of the text encoders.
const TEXT_WIDTH: usize = 64;

/// A random editor from `seed`: all its code paths work, and it can edit nothing.
pub fn new(seed: u64, device: &Device) -> Editor {
    Editor::new(base(seed, device), scheduler(), device)
}

/// The random base model of an editor.
pub fn base(seed: u64, device: &Device) -> FluxKontext {
    let init = |part: u64| Init::new(seed.wrapping_add(part << 32), device);
    let encoders = FluxKontextEncoders {
        vae: AutoencoderKl::init(&vae_config(), &init(1)),
        text_encoder: ClipText::init(&clip_config(), &init(2)),
        text_encoder_2: T5Encoder::init(&t5_config(), &init(3)),
        tokenizer: tokenizer(Family::Clip),
        tokenizer_2: tokenizer(Family::T5),
    };
    let transformer = FluxTransformer::init(&transformer_config(), &init(4));
    FluxKontext::new(transformer, encoders)
}

/// Writes a random editor as a diffusers pipeline folder.
///
/// # Errors
/// If the folder can't be written.
pub fn init(folder: &Path, seed: u64) -> Result<(), LoadError> {
    new(seed, &Device::flex()).save(folder)
}

/// Latents of a quarter of the resolution, so that 64 x 64 pixels are 64 packed tokens.
pub fn vae_config() -> AutoencoderKlConfig {
    AutoencoderKlConfig {
        latent_channels: LATENT_CHANNELS,
        norm_num_groups: 8,
        scaling_factor: 1.0,
        shift_factor: Some(0.0),
        use_quant_conv: false,
        use_post_quant_conv: false,
        ..AutoencoderKlConfig::with_levels(vec![16, 32, 64])
    }
}

fn transformer_config() -> FluxTransformerConfig {
    FluxTransformerConfig {
        in_channels: 4 * LATENT_CHANNELS,
        num_layers: 3,
        num_single_layers: 4,
        attention_head_dim: 32,
        num_attention_heads: 4,
        joint_attention_dim: TEXT_WIDTH,
        pooled_projection_dim: TEXT_WIDTH,
        guidance_embeds: true,
        axes_dims_rope: vec![8, 12, 12],
        ..FluxTransformerConfig::default()
    }
}

fn clip_config() -> ClipTextConfig {
    ClipTextConfig {
        vocab_size: Family::Clip.vocab_size(),
        hidden_size: TEXT_WIDTH,
        intermediate_size: 2 * TEXT_WIDTH,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        max_position_embeddings: MAX_SEQUENCE_LENGTH,
        hidden_act: HiddenAct::QuickGelu,
        eos_token_id: Some(i64::from(Family::Clip.id("<|endoftext|>"))),
        ..ClipTextConfig::default()
    }
}

fn t5_config() -> T5Config {
    T5Config {
        vocab_size: Family::T5.vocab_size(),
        d_model: TEXT_WIDTH,
        d_kv: TEXT_WIDTH / 4,
        d_ff: 2 * TEXT_WIDTH,
        num_layers: 2,
        num_heads: 4,
        ..T5Config::default()
    }
}

/// FLUX's schedule: the shift is linear in the number of tokens.
pub fn scheduler() -> FlowMatchScheduler {
    let mut scheduler = FlowMatchScheduler::default();
    scheduler.use_dynamic_shifting = true;
    scheduler
}

fn tokenizer(family: Family) -> Tokenizer {
    Tokenizer::new(family.tokenizer(), family.padding_id(), MAX_SEQUENCE_LENGTH)
}

#[cfg(test)]
pub(crate) mod tests {
    use retouch_dataset::Split;
    use retouch_models::editor::{Condition, Parts, SampleOptions};
    use retouch_models::noise;
    use retouch_models::solver::Solver;

    use super::*;
    use crate::generate;

    /// Two edits from two noises are pictures of the world, and not the same.
    pub(crate) fn two_edits_differ(
        editor: &Editor,
        condition: &Condition,
        options: &SampleOptions,
    ) {
        let [tokens, channels] = editor.latent_shape(SIZE);
        let noise = noise::normal(3, [2, tokens, channels], editor.device());
        let x0 = editor
            .sample(condition, noise, options, None)
            .expect("latents");
        let images = editor.decode(x0, condition).expect("images");
        assert_eq!(images.len(), 2);
        assert_eq!(ImageSize::of(&images[0]), SIZE);
        assert_ne!(images[0], images[1]);
    }

    #[test]
    fn a_new_editor_is_written_read_and_asked() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        init(folder.path(), 1).expect("a written editor");
        let device = Device::flex();
        let editor = Editor::load(folder.path(), &device, Parts::All).expect("an editor");
        let case = generate::case(1, Split::Test, 2);
        let source = case.source_image();
        let condition = editor
            .encode(&case.prompt(), &source, SIZE, MAX_SEQUENCE_LENGTH)
            .expect("a condition");
        assert_eq!(editor.latent_shape(SIZE), [64, 32]);
        let options = SampleOptions {
            num_inference_steps: 2,
            solver: Solver::Dpm2,
            guidance_scale: 2.5,
            true_cfg_scale: 1.0,
        };
        two_edits_differ(&editor, &condition, &options);
    }

    #[test]
    fn parameters_are_few() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        init(folder.path(), 1).expect("a written editor");
        let file = folder
            .path()
            .join("transformer/diffusion_pytorch_model.safetensors");
        let bytes = std::fs::metadata(file)
            .expect("the transformer's weights")
            .len();
        assert!((8_000_000..13_000_000).contains(&bytes), "{bytes} bytes");
    }
}
