//! What a reward worker needs for a Qwen2.5-VL judge, and computes with it.

use std::path::Path;

use retouch_settings::DeviceName;

use super::effort::{Effort, EffortLine, Unit};
use super::gpu;
use super::memory::{MemoryLine, Workload};
use crate::image_processor::ImageProcessor;
use crate::qwen2_5_vl::{Qwen2_5Vl, Qwen2_5VlConfig};
use crate::weights::{LoadError, Pretrained, PretrainedConfig};

/// Tokens of the template, the instruction and the requirement.
const TEXT_TOKENS: u64 = 256;
/// Of these, tokens after the edited image.
const TEXT_TOKENS_AFTER: u64 = 32;
/// Widths of a token in the decoder, over the hidden and over the inner width of its MLP.
const DECODER_WIDTHS: [u64; 2] = [6, 3];
/// The same of a patch in the vision tower.
const VISION_WIDTHS: [u64; 2] = [8, 3];

/// A judge by its configurations, and the images that it is shown.
pub(super) struct JudgeOutline {
    config: Qwen2_5VlConfig,
    /// Images before an edit.
    sources: u64,
    /// Of one image.
    patches: u64,
    /// Of one image, as the decoder reads it.
    image_tokens: u64,
}

impl JudgeOutline {
    pub(super) fn read(folder: &Path, workload: &Workload) -> Result<Self, LoadError> {
        let config = Qwen2_5VlConfig::load(folder)?;
        let processor = ImageProcessor::load(folder)?;
        let [height, width] = processor.target_size(workload.size.height, workload.size.width);
        let side = config.vision.patch_size;
        let patches = ((height / side) * (width / side)) as u64;
        Ok(Self {
            sources: workload.sources as u64,
            image_tokens: patches / config.vision.merge_unit() as u64,
            patches,
            config,
        })
    }

    pub(super) fn memory(&self, workload: &Workload) -> Vec<MemoryLine> {
        let edits = workload.group_size as u64;
        let (text, vision) = (&self.config.text, &self.config.vision);
        let key_value = 2 * (text.num_key_value_heads * text.head_dim()) as u64;
        let before = TEXT_TOKENS + self.sources * self.image_tokens;
        let cache = [
            (edits, "edits"),
            (before, "tokens before the edit"),
            (text.num_hidden_layers as u64, "layers"),
            (key_value, "keys and values"),
            (workload.dtype.size() as u64, "B"),
        ];
        let wide =
            |[hidden, inner]: [u64; 2], a: usize, b: usize| hidden * a as u64 + inner * b as u64;
        let decoder = |rows, tokens| {
            let factors = [
                rows,
                tokens,
                (
                    wide(DECODER_WIDTHS, text.hidden_size, text.intermediate_size),
                    "numbers",
                ),
                workload.number(),
            ];
            MemoryLine::product("the decoder's hidden states", &factors)
        };
        let tower = [
            (edits + self.sources, "images"),
            (self.patches, "patches"),
            (
                wide(VISION_WIDTHS, vision.hidden_size, vision.intermediate_size),
                "numbers",
            ),
            workload.number(),
        ];
        let of_edits = (TEXT_TOKENS + self.image_tokens, "tokens of the edit");
        // One after the other.
        let passing = [
            decoder((edits, "edits"), of_edits),
            decoder((1, "group"), (before, "tokens before the edits")),
            MemoryLine::product("the vision tower's hidden states", &tower),
        ];
        let mut lines = vec![
            MemoryLine::weights("model", self.parameters(), workload.dtype),
            MemoryLine::product("keys and values of the shared prefix", &cache),
        ];
        lines.extend(passing.into_iter().max_by_key(|line| line.bytes));
        if workload.device != DeviceName::Cpu {
            lines.push(gpu::context());
        }
        lines
    }

    /// The prefix, with the sources, is computed once for all edits of a group.
    pub(super) fn effort(&self, workload: &Workload) -> Effort {
        let edits = workload.group_size.max(1) as u64;
        let prefix = TEXT_TOKENS - TEXT_TOKENS_AFTER + self.sources * self.image_tokens;
        let suffix = TEXT_TOKENS_AFTER + self.image_tokens;
        let vision = self.config.vision_work(self.patches);
        let shared = self.config.language_work(prefix, 0) + vision * self.sources;
        let own = self.config.language_work(suffix, prefix) + vision;
        let bytes = self.parameters() * workload.dtype.size() as u64;
        Effort::new(
            Unit::Edit,
            vec![
                EffortLine {
                    what: "the sources and the text before the edit".to_owned(),
                    arithmetic: format!(
                        "{} FLOP of {prefix} tokens / {edits} edits",
                        shared.flops()
                    ),
                    flops: shared.flops() / edits,
                    bytes: bytes / edits,
                },
                EffortLine {
                    what: "the edit".to_owned(),
                    arithmetic: format!("{suffix} tokens, {} patches", self.patches),
                    flops: own.flops(),
                    bytes: bytes / edits,
                },
            ],
        )
    }

    fn parameters(&self) -> u64 {
        Qwen2_5Vl::table(&self.config).parameters()
    }
}
