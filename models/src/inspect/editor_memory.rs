//! What rollout workers and learners need for a FLUX.1-Kontext editor.

use std::path::Path;

use burn::tensor::DType;

use super::learner_memory::{self, Trunk};
use super::memory::{MemoryLine, Workload};
use crate::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use crate::clip::{ClipText, ClipTextConfig};
use crate::editor::{DECODED_PIXELS_MAX, flux_format};
use crate::flux::{FluxTransformer, FluxTransformerConfig};
use crate::init::Init;
use crate::lora::{LoraConfig, Projection};
use crate::t5::{T5Config, T5Encoder};
use crate::weights::{LoadError, Table};

/// Bytes of a number on its way through a network: kernels compute in f32.
const COMPUTED: u64 = 4;
/// Widths of a token that are there at once while the transformer computes without gradients.
const SAMPLING_WIDTHS: u64 = 16;
/// Channels' worth of a pixel, over those of the second level, while the VAE decodes.
const DECODING_COPIES: u64 = 5;
/// Adapters that a rollout worker keeps: the current one and the one before.
const ADAPTERS_KEPT: u64 = 2;

pub(super) fn rollout(folder: &Path, workload: &Workload) -> Result<Vec<MemoryLine>, LoadError> {
    let editor = Parts::read(folder)?;
    let adapter = editor.adapter(&workload.lora);
    let mut lines = editor.encoders(workload);
    lines.insert(0, editor.transformer(workload));
    let factors = [(ADAPTERS_KEPT, ""), (adapter, "values"), (4, "B (f32)")];
    lines.push(MemoryLine::product("adapters", &factors));
    if workload.dtype == DType::F32 {
        let targeted = editor.targeted(&workload.lora);
        lines.push(MemoryLine::product(
            "targeted weights with the adapter merged",
            &[(targeted, "values"), (4, "B (f32)")],
        ));
    }
    let sampling = editor.tokens(
        workload,
        workload.group_size as u64,
        SAMPLING_WIDTHS,
        "sampling a group",
    );
    let decoding = editor.decoding(workload);
    lines.push(if sampling.bytes > decoding.bytes {
        sampling
    } else {
        decoding
    });
    Ok(lines)
}

pub(super) fn learner(folder: &Path, workload: &Workload) -> Result<Vec<MemoryLine>, LoadError> {
    let editor = Parts::read(folder)?;
    let trunk = Trunk {
        parameters: editor.tables[0].1.parameters(),
        hidden: editor.config.inner_dim() as u64,
        tokens: editor.tokens_of_a_sample(workload),
        projections: &editor.projections,
    };
    Ok(learner_memory::learner(&trunk, workload))
}

/// The configurations of an editor's folder, and the modules that they describe, which are never made.
struct Parts {
    config: FluxTransformerConfig,
    projections: Vec<Projection>,
    vae: AutoencoderKlConfig,
    tables: Vec<(&'static str, Table)>,
}

impl Parts {
    fn read(folder: &Path) -> Result<Self, LoadError> {
        let part = |name: &str| folder.join(name);
        let config = FluxTransformerConfig::load(&part("transformer"))?;
        let vae = AutoencoderKlConfig::load(&part("vae"))?;
        let clip = ClipTextConfig::load(&part("text_encoder"))?;
        let t5 = T5Config::load(&part("text_encoder_2"))?;
        let transformer = FluxTransformer::init(&config, &Init::unused());
        Ok(Self {
            projections: transformer.projections().to_vec(),
            tables: vec![
                ("transformer", FluxTransformer::table(&config)),
                ("text_encoder", ClipText::table(&clip)),
                ("text_encoder_2", T5Encoder::table(&t5)),
                ("vae", AutoencoderKl::table(&vae)),
            ],
            config,
            vae,
        })
    }

    fn transformer(&self, workload: &Workload) -> MemoryLine {
        let (name, table) = &self.tables[0];
        MemoryLine::weights(name, table.parameters(), workload.dtype)
    }

    fn encoders(&self, workload: &Workload) -> Vec<MemoryLine> {
        let line = |(name, table): &(&str, Table)| {
            // The VAE is small, and its norms want the range.
            let dtype = if *name == "vae" {
                DType::F32
            } else {
                workload.dtype
            };
            MemoryLine::weights(name, table.parameters(), dtype)
        };
        self.tables[1..].iter().map(line).collect()
    }

    fn adapter(&self, lora: &LoraConfig) -> u64 {
        lora.flat_len(&self.projections) as u64
    }

    /// Values of the weights that the adapter changes.
    fn targeted(&self, lora: &LoraConfig) -> u64 {
        let targeted = self.projections.iter().filter(|p| lora.targets(&p.name));
        targeted
            .map(|p| (p.in_features * p.out_features) as u64)
            .sum()
    }

    fn tokens_of_a_sample(&self, workload: &Workload) -> u64 {
        let [image, _] = flux_format(&self.vae).shape(workload.size);
        (2 * image + workload.max_sequence_length) as u64
    }

    /// What the tokens of `samples` samples take, each as `widths` rows of hidden states.
    fn tokens(&self, workload: &Workload, samples: u64, widths: u64, what: &str) -> MemoryLine {
        let tokens = self.tokens_of_a_sample(workload);
        let hidden = self.config.inner_dim() as u64;
        let factors = [
            (samples, "samples"),
            (tokens, "tokens (result, source, text)"),
            (hidden, "wide"),
            (widths, "times"),
            (COMPUTED, "B (f32)"),
        ];
        MemoryLine::product(what, &factors)
    }

    fn decoding(&self, workload: &Workload) -> MemoryLine {
        let image = workload.size.height * workload.size.width;
        let pixels = (workload.group_size * image).min(DECODED_PIXELS_MAX.max(image));
        let levels = &self.vae.block_out_channels;
        let channels = levels.get(1).or(levels.first()).copied().unwrap_or(0);
        let factors = [
            (pixels as u64, "pixels"),
            (channels as u64, "channels"),
            (DECODING_COPIES, "times"),
            (COMPUTED, "B (f32)"),
        ];
        MemoryLine::product("decoding images", &factors)
    }
}
