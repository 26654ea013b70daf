//! What roles need of a GPU's memory.
//!
//! Other than on a CPU, scores of attention are never there: its kernel keeps none, and the way back computes them again
//! in a workspace of bounded size. Activations are stored as the weights are, optimizer state and blobs are on the host,
//! and memory comes in pages of a size for each size of tensor. Calculated from the code and from the pages that the driver
//! double saw at published sizes (`tools/gpu`); what of it was measured on a card is in `models/COST.md`.

use super::learner_memory::{self, Trunk, activations};
use super::memory::{MemoryLine, Workload, fuller};
use crate::editor::{Outline, samples_at_once};
use crate::ops::Scores;

/// An f32.
const F32: (u64, &str) = (4, "B (f32)");
/// The driver's context, and the compiled kernels in it.
const CONTEXT: u64 = 512 << 20;
/// Numbers of a head in both published transformers.
const HEAD_DIM: u64 = 128;
/// Pages of activations while it does, in widths of a token: of each size of tensor there are as many as are on their way at
/// once, and pages of one size serve no other. In double-stream blocks, 11 single tensors and 3 of inner activations.
const PREDICTING_DOUBLE: u64 = 22;
/// What single-stream blocks add, whose tensors have sizes of their own: 3 of inner activations, 3 of these beside attention's.
const PREDICTING_SINGLE: u64 = 28;
/// Of these, the widest tensor's.
const WIDEST: u64 = 5;
/// Smaller tensors share the pages of the widest ones; so many more of these are held for them.
const SHARED_PAGES: u64 = 2;
/// Weights fill pages whose size others decide: of so many bytes, one stays free.
const PACKING: u64 = 80;
/// Pixels for one position of the VAE's own attention, whose heads are too wide for a kernel that keeps no scores.
const VAE_ATTENTION_PIXELS: u64 = 64;

/// A learner at its fullest: halfway through a micro batch, or while it asks the policies that are not trained about as
/// many pairs as are worth asking about at once.
pub(super) fn learner(trunk: &Trunk<'_>, workload: &Workload) -> Vec<MemoryLine> {
    let values = learner_memory::adapter(trunk, workload);
    let copies =
        |what: &str, count: u64| MemoryLine::product(what, &[(count, ""), (values, "values"), F32]);
    let mut lines = vec![
        MemoryLine::weights("transformer", trunk.parameters, workload.dtype),
        copies("policy and old policy", 2),
        copies(
            "gradients of a micro batch and a shard, and their flat form",
            3,
        ),
    ];
    let pairs = workload.micro_batch_size.max(1) as u64;
    let mut training = activations(trunk, workload);
    training.push(workspace(trunk.hidden, pairs, trunk.tokens, workload));
    let asked_at_once = pairs.max(at_once(trunk.tokens));
    let asked = predicting(
        trunk.hidden,
        predicting_widths(trunk.single_blocks),
        asked_at_once,
        trunk.tokens,
        workload,
    );
    let asked = MemoryLine {
        what: "frozen policies' activations".to_owned(),
        ..asked
    };
    lines.extend(fuller(training, vec![asked]));
    let widest = [
        (asked_at_once, "pairs"),
        (trunk.tokens, "tokens"),
        (trunk.hidden, "wide"),
        (WIDEST, "times"),
        (workload.dtype.size() as u64, "B"),
    ];
    lines.extend(held(&lines, &widest));
    lines
}

/// A rollout worker's transformer while it samples as many of a group's edits as it does at once.
pub(super) fn sampling(editor: &Outline, workload: &Workload) -> MemoryLine {
    let tokens = editor.tokens.all();
    let samples = (workload.group_size as u64).min(at_once(tokens));
    let widths = predicting_widths(editor.single_blocks as u64);
    predicting(editor.hidden as u64, widths, samples, tokens, workload)
}

/// Scores of the VAE's attention over the `images` that are decoded at once.
pub(super) fn vae_scores(images: u64, pixels: u64) -> MemoryLine {
    let positions = pixels.div_ceil(VAE_ATTENTION_PIXELS);
    let factors = [
        (images, "images"),
        (positions, "queries"),
        (positions, "keys"),
        (2, "scores and softmax"),
        F32,
    ];
    MemoryLine::product("the VAE's attention", &factors)
}

/// What every process holds of a card besides what it has in use: `widest` are the factors of its largest tensor.
pub(super) fn held(used: &[MemoryLine], widest: &[(u64, &str)]) -> [MemoryLine; 3] {
    let weights = used.iter().filter(|line| line.is_weights());
    let weights: u64 = weights.map(|line| line.bytes).sum();
    let pages: Vec<(u64, &str)> = [(SHARED_PAGES, "pages")]
        .into_iter()
        .chain(widest.iter().copied())
        .collect();
    [
        MemoryLine::product("pages that smaller tensors share", &pages),
        MemoryLine::product(
            "pages of weights, not quite full",
            &[(weights / PACKING, "B")],
        ),
        MemoryLine::product("the driver's context and kernels", &[(CONTEXT, "B")]),
    ]
}

/// The largest tensor of a rollout worker.
pub(super) fn widest<'a>(editor: &Outline, workload: &Workload) -> [(u64, &'a str); 5] {
    let tokens = editor.tokens.all();
    [
        ((workload.group_size as u64).min(at_once(tokens)), "samples"),
        (tokens, "tokens"),
        (editor.hidden as u64, "wide"),
        (WIDEST, "times"),
        (workload.dtype.size() as u64, "B"),
    ]
}

/// Samples of so many tokens that the transformer is given at once while it only predicts.
fn at_once(tokens: u64) -> u64 {
    samples_at_once(tokens as usize) as u64
}

fn predicting_widths(single_blocks: u64) -> u64 {
    match single_blocks {
        0 => PREDICTING_DOUBLE,
        _ => PREDICTING_DOUBLE + PREDICTING_SINGLE,
    }
}

fn predicting(
    hidden: u64,
    widths: u64,
    samples: u64,
    tokens: u64,
    workload: &Workload,
) -> MemoryLine {
    let factors = [
        (samples, "samples at once"),
        (tokens, "tokens (result, source, text)"),
        (hidden, "wide"),
        (widths, "times"),
        (workload.dtype.size() as u64, "B"),
    ];
    MemoryLine::product("sampling", &factors)
}

fn workspace(hidden: u64, pairs: u64, tokens: u64, workload: &Workload) -> MemoryLine {
    let scores = Scores {
        batch: pairs as usize,
        heads: (hidden / HEAD_DIM).max(1) as usize,
        queries: tokens as usize,
        keys: tokens as usize,
        number: workload.dtype.size(),
    };
    let bytes = scores.workspace_bytes() as u64;
    MemoryLine::product("attention's scores of a block of queries", &[(bytes, "B")])
}
