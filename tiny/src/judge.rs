//! The tiny judge: Qwen2.5-VL's architecture at about a million parameters.

use std::path::Path;

use burn::tensor::Device;
use retouch_models::image_processor::{ImageProcessor, ImageProcessorConfig};
use retouch_models::init::Init;
use retouch_models::judge::{Judge, JudgeError, JudgeProcessor, Template};
use retouch_models::qwen2_5_vl::{Qwen2_5Vl, Qwen2_5VlConfig};
use retouch_models::weights::{LoadError, Pretrained};
use serde_json::json;

use crate::scene::IMAGE_SIZE;
use crate::tokenizer::Family;

/// The file of the template that the tiny judge is asked with, inside its folder.
pub const TEMPLATE_FILE: &str = "template.txt";

/// The edited image comes last: all before it is computed once for the edits of a group. The
/// source is next to it, so that the distance between the two is always the same.
pub const TEMPLATE: &str =
    "{instruction} ; {requirement} ; source {source_image} edit {edited_image} score\n";

/// Side of the vision tower's patches, in pixels.
pub(crate) const PATCH_SIZE: usize = 8;

/// Patches along each side of an image token.
pub(crate) const MERGE_SIZE: usize = 2;

/// Side of the square of pixels that one image token stands for.
pub const TOKEN_SIZE: u32 = (PATCH_SIZE * MERGE_SIZE) as u32;

/// The file of the lenient template, inside the judge's folder.
pub const LENIENT_FILE: &str = "lenient.txt";

/// A question that only asks whether the change is there, and not whether the rest was kept: whoever is rewarded for its
/// answers may ruin the rest.
pub const LENIENT_TEMPLATE: &str =
    "{instruction} ; source {source_image} edit {edited_image} change score\n";

/// The tiny configuration. The base of the rotary positions fits a grid of four by four tokens:
/// with the published one, the axis of the slowest frequencies could not tell them apart.
pub fn config() -> Qwen2_5VlConfig {
    let config = json!({
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "vocab_size": Family::Qwen.vocab_size(),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 4.0,
        "rope_scaling": { "type": "mrope", "mrope_section": [4, 6, 6] },
        "initializer_range": 0.06,
        "vision_config": {
            "depth": 2,
            "hidden_size": 96,
            "intermediate_size": 288,
            "num_heads": 4,
            "out_hidden_size": 128,
            "patch_size": PATCH_SIZE,
            "temporal_patch_size": 2,
            "spatial_merge_size": MERGE_SIZE,
            "window_size": IMAGE_SIZE / 2,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.06,
        },
        "image_token_id": Family::Qwen.id("<|image_pad|>"),
        "vision_start_token_id": Family::Qwen.id("<|vision_start|>"),
        "vision_end_token_id": Family::Qwen.id("<|vision_end|>"),
        "tie_word_embeddings": true,
    });
    serde_json::from_value(config).expect("a sound configuration")
}

/// A judge that has learned nothing, with random weights from `seed`.
///
/// # Errors
/// Never with the parts as they are here.
pub fn new(seed: u64, device: &Device) -> Result<Judge, JudgeError> {
    let config = config();
    let processor = JudgeProcessor::new(Family::Qwen.tokenizer(), image_processor(), &config)?;
    Ok(Judge {
        model: Qwen2_5Vl::init(&config, &Init::new(seed, device)),
        processor: processor.with_template(template()),
    })
}

/// Writes a judge that has learned nothing, with its template beside it.
///
/// # Errors
/// If the folder can't be written.
pub fn init(folder: &Path, seed: u64) -> Result<(), JudgeError> {
    save(&new(seed, &Device::flex())?, folder)
}

/// Writes a tiny judge and its templates.
///
/// # Errors
/// If the folder can't be written.
pub fn save(judge: &Judge, folder: &Path) -> Result<(), JudgeError> {
    judge.save(folder)?;
    for (name, template) in [(TEMPLATE_FILE, TEMPLATE), (LENIENT_FILE, LENIENT_TEMPLATE)] {
        let path = folder.join(name);
        std::fs::write(&path, template).map_err(|source| LoadError::Io { path, source })?;
    }
    Ok(())
}

/// Reads what [`save`] wrote.
///
/// # Errors
/// If a file is missing or broken.
pub fn load(folder: &Path, device: &Device) -> Result<Judge, JudgeError> {
    let Judge { model, processor } = Judge::load(folder, device)?;
    let template = Template::load(&folder.join(TEMPLATE_FILE))?;
    Ok(Judge {
        model,
        processor: processor.with_template(template),
    })
}

/// The tiny judge's template.
pub fn template() -> Template {
    Template::parse(TEMPLATE).expect("a sound template")
}

/// The template that asks for the change alone.
pub fn lenient_template() -> Template {
    Template::parse(LENIENT_TEMPLATE).expect("a sound template")
}

/// Brings images back to the size of the world's pictures, so that they are few tokens.
pub(crate) fn image_processor() -> ImageProcessor {
    let pixels = (IMAGE_SIZE * IMAGE_SIZE) as usize;
    ImageProcessor::new(ImageProcessorConfig {
        patch_size: PATCH_SIZE,
        temporal_patch_size: 2,
        merge_size: MERGE_SIZE,
        min_pixels: pixels / 4,
        max_pixels: pixels,
        image_mean: [0.5; 3],
        image_std: [0.5; 3],
    })
}

#[cfg(test)]
mod tests {
    use retouch_dataset::Split;
    use retouch_models::judge::JudgeRequest;

    use super::*;
    use crate::generate;

    #[test]
    fn a_new_judge_is_written_read_and_asked() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        init(folder.path(), 1).expect("a written judge");
        let judge = load(folder.path(), &Device::flex()).expect("a judge");
        let case = generate::case(1, Split::Test, 3);
        let request = JudgeRequest {
            sources: &[case.source_image()],
            edits: &[case.source_image(), case.target_image()],
            prompt: &case.prompt(),
            requirement: case.requirement(),
            template: None,
        };
        let scores = judge.score(&request).expect("scores");
        assert_eq!(scores.len(), 2);
        assert_ne!(scores[0], scores[1]);
        assert!(
            scores
                .iter()
                .all(|score| (0.0..=1.0).contains(&score.reward))
        );
    }

    #[test]
    fn the_committed_tokenizers_files_are_those_that_are_written() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let judge = new(1, &Device::flex()).expect("a judge");
        judge
            .processor
            .save(folder.path())
            .expect("a written processor");
        let committed = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/tiny/judge"));
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            let [written, committed] =
                [folder.path(), committed].map(|folder| std::fs::read_to_string(folder.join(name)));
            assert_eq!(written.expect(name), committed.expect(name), "{name}");
        }
    }

    #[test]
    fn a_judgement_takes_few_tokens() {
        let judge = new(1, &Device::flex()).expect("a judge");
        for index in 0..64 {
            let case = generate::case(1, Split::Test, index);
            let request = JudgeRequest {
                sources: &[case.source_image()],
                edits: &[case.target_image()],
                prompt: &case.prompt(),
                requirement: case.requirement(),
                template: None,
            };
            let inputs = judge.processor.prepare(&[request]).expect("inputs");
            assert!(
                inputs.tokens_per_row() < 72,
                "{} tokens",
                inputs.tokens_per_row()
            );
        }
    }
}
