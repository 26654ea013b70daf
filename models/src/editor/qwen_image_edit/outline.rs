use std::path::Path;

use super::encoders::check_patches;
use super::template::DROPPED_TOKENS;
use super::{Areas, QwenImageEditPlusPipeline, format_of};
use crate::autoencoder_kl_qwen_image::{AutoencoderKlQwenImage, AutoencoderKlQwenImageConfig};
use crate::dit::Transformer;
use crate::editor::TextWidths;
use crate::editor::base_model::Pipeline;
use crate::editor::folder::check_widths;
use crate::editor::outline::{Assumed, Network, Outline};
use crate::editor::size::area_size;
use crate::image_processor::ImageProcessor;
use crate::init::Init;
use crate::qwen_image::{QwenImageTransformer, QwenImageTransformerConfig};
use crate::qwen2_5_vl::{Qwen2_5Vl, Qwen2_5VlConfig};
use crate::weights::{LoadError, Pretrained, PretrainedConfig};

/// The outline of a `QwenImageEditPlusPipeline` folder.
pub(in crate::editor) fn outline(
    folder: &Path,
    assumed: &Assumed<'_>,
) -> Result<Outline, LoadError> {
    let config = QwenImageTransformerConfig::load(&folder.join("transformer"))?;
    let vae = AutoencoderKlQwenImageConfig::load(&folder.join("vae"))?;
    let text = Qwen2_5VlConfig::load(&folder.join("text_encoder"))?;
    let processor = ImageProcessor::load(&folder.join("processor"))?;
    check_patches(&processor, &text)?;
    let format = format_of(&vae);
    let widths = TextWidths {
        tokens: Some(text.text.hidden_size),
        pooled: None,
    };
    let widths = QwenImageEditPlusPipeline::widths(&config, format, widths);
    check_widths(folder, widths)?;
    let transformer = QwenImageTransformer::init(&config, &Init::unused());
    let projections = transformer.projections().to_vec();
    let patches = seen_patches(&processor, assumed);
    let all = assumed.sources * patches;
    let seen = all / text.vision.merge_unit() + assumed.prompt_tokens;
    let tokens = assumed.tokens(format, seen);
    let network = |name, table| Network { name, table };
    Ok(Outline {
        transformer: network("transformer", QwenImageTransformer::table(&config)),
        text_encoders: vec![network("text_encoder", Qwen2_5Vl::table(&text))],
        vae: network("vae", AutoencoderKlQwenImage::table(&vae)),
        hidden: config.inner_dim(),
        double_blocks: config.num_layers,
        single_blocks: 0,
        decoded_channels: vae.decoded_channels(),
        tokens,
        velocity: config.work(tokens),
        adapter: assumed.adapter(&projections, |name| {
            QwenImageTransformerConfig::places(name, tokens)
        }),
        prompt: text.vision_work(patches as u64) * assumed.sources as u64
            + text.language_work((DROPPED_TOKENS + seen) as u64, 0),
        encoding: vae.encoding_work(assumed.pixels()) * assumed.sources as u64,
        decoding: vae.decoding_work(assumed.pixels()),
        projections,
    })
}

/// Patches of a source as the text encoder sees it.
fn seen_patches(processor: &ImageProcessor, assumed: &Assumed<'_>) -> usize {
    let shown = area_size(assumed.size, Areas::default().condition);
    let [height, width] = processor.target_size(shown.height, shown.width);
    let side = processor.config().patch_size;
    (height / side) * (width / side)
}
