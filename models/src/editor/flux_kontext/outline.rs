use std::path::Path;

use super::{FluxKontextPipeline, format_of};
use crate::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use crate::clip::{ClipText, ClipTextConfig};
use crate::dit::Transformer;
use crate::editor::TextWidths;
use crate::editor::base_model::Pipeline;
use crate::editor::folder::check_widths;
use crate::editor::outline::{Assumed, Network, Outline};
use crate::flux::{FluxTransformer, FluxTransformerConfig};
use crate::init::Init;
use crate::t5::{T5Config, T5Encoder};
use crate::weights::{LoadError, Pretrained, PretrainedConfig};

/// The outline of a `FluxKontextPipeline` folder.
pub(in crate::editor) fn outline(
    folder: &Path,
    assumed: &Assumed<'_>,
) -> Result<Outline, LoadError> {
    let config = FluxTransformerConfig::load(&folder.join("transformer"))?;
    let vae = AutoencoderKlConfig::load(&folder.join("vae"))?;
    let clip = ClipTextConfig::load(&folder.join("text_encoder"))?;
    let t5 = T5Config::load(&folder.join("text_encoder_2"))?;
    let format = format_of(&vae);
    let text = TextWidths {
        tokens: Some(t5.d_model),
        pooled: Some(clip.hidden_size),
    };
    check_widths(folder, FluxKontextPipeline::widths(&config, format, text))?;
    let transformer = FluxTransformer::init(&config, &Init::unused());
    let projections = transformer.projections().to_vec();
    let tokens = assumed.tokens(format, assumed.prompt_tokens);
    let network = |name, table| Network { name, table };
    let levels = &vae.block_out_channels;
    Ok(Outline {
        transformer: network("transformer", FluxTransformer::table(&config)),
        text_encoders: vec![
            network("text_encoder", ClipText::table(&clip)),
            network("text_encoder_2", T5Encoder::table(&t5)),
        ],
        vae: network("vae", AutoencoderKl::table(&vae)),
        hidden: config.inner_dim(),
        double_blocks: config.num_layers,
        single_blocks: config.num_single_layers,
        decoded_channels: levels.get(1).or(levels.first()).copied().unwrap_or(0),
        tokens,
        velocity: config.work(tokens),
        adapter: assumed.adapter(&projections, |name| {
            FluxTransformerConfig::places(name, tokens)
        }),
        prompt: clip.work() + t5.work(assumed.prompt_tokens as u64),
        encoding: vae.encoding_work(assumed.pixels()) * assumed.sources as u64,
        decoding: vae.decoding_work(assumed.pixels()),
        projections,
    })
}
