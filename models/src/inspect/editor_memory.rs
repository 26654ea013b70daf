//! What rollout workers and learners need for a base editor.

use burn::tensor::DType;
use retouch_settings::DeviceName;

use super::gpu;
use super::learner_memory::{self, Trunk};
use super::memory::{F32, MemoryLine, Workload, fuller};
use crate::editor::{Network, Outline};
use crate::lora::{LoraConfig, flat_len};

/// Widths of a token that are there at once while the transformer computes without gradients.
const SAMPLING_WIDTHS: u64 = 16;
/// Channels' worth of a pixel, over those of the second level, while the VAE decodes.
const DECODING_COPIES: u64 = 5;
/// Adapters that a rollout worker keeps: the current one and the one before.
const ADAPTERS_KEPT: u64 = 2;

pub(super) fn rollout(editor: &Outline, workload: &Workload) -> Vec<MemoryLine> {
    let adapter = adapter(editor, &workload.lora);
    let mut lines = vec![weights(&editor.transformer, workload.dtype)];
    let text_encoders = editor.text_encoders.iter();
    lines.extend(text_encoders.map(|network| weights(network, workload.dtype)));
    let on_cpu = workload.device == DeviceName::Cpu;
    // On a CPU it computes in f32 anyway, and is small.
    let vae = if on_cpu { DType::F32 } else { workload.dtype };
    lines.push(weights(&editor.vae, vae));
    let factors = [(ADAPTERS_KEPT, ""), (adapter, "values"), F32];
    lines.push(MemoryLine::product("adapters", &factors));
    if workload.dtype == DType::F32 {
        lines.push(MemoryLine::product(
            "targeted weights with the adapter merged",
            &[(targeted(editor, &workload.lora), "values"), F32],
        ));
    }
    if on_cpu {
        lines.extend(passing_on_cpu(editor, workload));
    } else {
        lines.extend(passing_on_gpu(editor, workload));
        lines.push(gpu::context());
    }
    lines
}

fn passing_on_cpu(editor: &Outline, workload: &Workload) -> Vec<MemoryLine> {
    let samples = workload.group_size as u64;
    let sampling = tokens(editor, samples, SAMPLING_WIDTHS, "sampling a group");
    fuller(vec![sampling], vec![decoding(editor, workload)])
}

fn passing_on_gpu(editor: &Outline, workload: &Workload) -> Vec<MemoryLine> {
    fuller(
        vec![gpu::sampling(editor, workload)],
        vec![decoding(editor, workload), gpu::vae_scores(workload)],
    )
}

pub(super) fn learner(editor: &Outline, workload: &Workload) -> Vec<MemoryLine> {
    let trunk = Trunk {
        parameters: editor.transformer.table.parameters(),
        hidden: editor.hidden as u64,
        tokens: editor.tokens.all(),
        double_blocks: editor.double_blocks as u64,
        single_blocks: editor.single_blocks as u64,
        projections: &editor.projections,
    };
    learner_memory::learner(&trunk, workload)
}

fn weights(network: &Network, dtype: DType) -> MemoryLine {
    MemoryLine::weights(network.name, network.table.parameters(), dtype)
}

fn adapter(editor: &Outline, lora: &LoraConfig) -> u64 {
    flat_len(lora, &editor.projections) as u64
}

/// Values of the weights that the adapter changes.
fn targeted(editor: &Outline, lora: &LoraConfig) -> u64 {
    let targeted = editor.projections.iter().filter(|p| lora.targets(&p.name));
    targeted
        .map(|p| (p.in_features * p.out_features) as u64)
        .sum()
}

/// What the tokens of `samples` samples take, each as `widths` rows of hidden states.
fn tokens(editor: &Outline, samples: u64, widths: u64, what: &str) -> MemoryLine {
    let factors = [
        (samples, "samples"),
        (editor.tokens.all(), "tokens (result, sources, text)"),
        (editor.hidden as u64, "wide"),
        (widths, "times"),
        F32,
    ];
    MemoryLine::product(what, &factors)
}

fn decoding(editor: &Outline, workload: &Workload) -> MemoryLine {
    let pixels = workload.decoded_at_once() * workload.size.height * workload.size.width;
    let factors = [
        (pixels as u64, "pixels"),
        (editor.decoded_channels as u64, "channels"),
        (DECODING_COPIES, "times"),
        workload.number(),
    ];
    MemoryLine::product("decoding images", &factors)
}
