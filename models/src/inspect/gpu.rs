//! What roles need of a GPU's memory.
//!
//! Other than on a CPU, scores of attention are never there: its kernel keeps none, and the way back computes them again
//! in a workspace of bounded size. Activations are stored as the weights are; optimizer state and blobs are on the host.
//! Weights take what they are large, activations lie in pages of few sizes that are not always full. The widths below are
//! the most that the driver double (`tools/gpu`) saw of pages for models of published size; `models/COST.md` has those
//! runs beside their plans, and what of it was measured on a card.

use super::learner_memory::{self, Trunk};
use super::memory::{F32, MemoryLine, Reference, Workload, fuller};
use crate::editor::{Outline, samples_at_once};
use crate::lora::Checkpointing;
use crate::ops::Scores;

/// The driver's context, and the compiled kernels in it.
const CONTEXT: u64 = 512 << 20;
/// Numbers of a head in both published transformers.
const HEAD_DIM: u64 = 128;
/// While the transformer only predicts.
const PREDICTING: Widths = Widths {
    double: 24,
    single: 32,
};
/// What the graph of a block keeps that goes back.
const GRAPH: Widths = Widths {
    double: 15,
    single: 25,
};
/// What a block on its way back adds to what it takes to predict, with a graph that is there for no longer.
const GOING_BACK: u64 = 8;
/// Pixels for one position of the VAE's own attention, whose heads are too wide for a kernel that keeps no scores.
const VAE_ATTENTION_PIXELS: u64 = 64;

/// Activations in widths of a token: of double-stream blocks, and of single-stream blocks, whose tensors have sizes of
/// their own.
struct Widths {
    double: u64,
    single: u64,
}

/// Samples on their way through a transformer.
struct Passing<'a> {
    samples: u64,
    tokens: u64,
    hidden: u64,
    single_blocks: u64,
    workload: &'a Workload,
}

/// A learner at its fullest: halfway through a micro batch, or while it asks the policies that are not trained about as
/// many pairs as are worth asking about at once.
pub(super) fn learner(trunk: &Trunk<'_>, workload: &Workload) -> Vec<MemoryLine> {
    let values = learner_memory::adapter(trunk, workload);
    let copies =
        |what: &str, count: u64| MemoryLine::product(what, &[(count, ""), (values, "values"), F32]);
    let mut lines = vec![
        MemoryLine::weights("transformer", trunk.parameters, workload.dtype),
        match workload.reference {
            Reference::Base => copies("policy and old policy", 2),
            Reference::Adapter => copies("policy, old policy and reference", 3),
        },
        copies(
            "gradients of a micro batch and a shard, and their flat form",
            3,
        ),
    ];
    let pairs = workload.micro_batch_size.max(1) as u64;
    let passing = |samples| Passing {
        samples,
        tokens: trunk.tokens,
        hidden: trunk.hidden,
        single_blocks: trunk.single_blocks,
        workload,
    };
    let asked = passing(pairs.max(at_once(trunk.tokens)));
    lines.extend(fuller(
        passing(pairs).training(trunk),
        vec![asked.line("frozen policies' activations", asked.predicting())],
    ));
    lines.push(context());
    lines
}

/// A rollout worker's transformer while it samples as many of a group's edits as it does at once.
pub(super) fn sampling(editor: &Outline, workload: &Workload) -> MemoryLine {
    let tokens = editor.tokens.all();
    let passing = Passing {
        samples: (workload.group_size as u64).min(at_once(tokens)),
        tokens,
        hidden: editor.hidden as u64,
        single_blocks: editor.single_blocks as u64,
        workload,
    };
    passing.line("sampling", passing.predicting())
}

/// Scores of the VAE's attention over the images that are decoded at once.
pub(super) fn vae_scores(workload: &Workload) -> MemoryLine {
    let pixels = (workload.size.height * workload.size.width) as u64;
    let positions = pixels.div_ceil(VAE_ATTENTION_PIXELS);
    let factors = [
        (workload.decoded_at_once() as u64, "images"),
        (positions, "queries"),
        (positions, "keys"),
        (2, "scores and softmax"),
        workload.number(),
    ];
    MemoryLine::product("the VAE's attention", &factors)
}

/// What every process holds of a card.
pub(super) fn context() -> MemoryLine {
    MemoryLine::product("the driver's context and kernels", &[(CONTEXT, "B")])
}

/// Samples of so many tokens that the transformer is given at once while it only predicts.
fn at_once(tokens: u64) -> u64 {
    samples_at_once(tokens as usize) as u64
}

impl Passing<'_> {
    fn predicting(&self) -> u64 {
        match self.single_blocks {
            0 => PREDICTING.double,
            _ => PREDICTING.double + PREDICTING.single,
        }
    }

    /// A micro batch: what is kept of all blocks, and the one that goes back.
    fn training(&self, trunk: &Trunk<'_>) -> Vec<MemoryLine> {
        let (double, single) = (trunk.double_blocks, trunk.single_blocks);
        let kept = match self.workload.checkpointing {
            Checkpointing::None => self.line(
                "graphs of the blocks",
                double * GRAPH.double + single * GRAPH.single,
            ),
            Checkpointing::Block => self.line("inputs of the blocks", double + single),
        };
        let going_back = self.line("one block, there and back", self.predicting() + GOING_BACK);
        vec![kept, going_back, self.workspace()]
    }

    fn workspace(&self) -> MemoryLine {
        let scores = Scores {
            batch: self.samples as usize,
            heads: (self.hidden / HEAD_DIM).max(1) as usize,
            queries: self.tokens as usize,
            keys: self.tokens as usize,
            number: self.workload.dtype.size(),
        };
        let bytes = scores.workspace_bytes() as u64;
        MemoryLine::product("attention's scores of a block of queries", &[(bytes, "B")])
    }

    fn line(&self, what: &str, widths: u64) -> MemoryLine {
        let factors = [
            (self.samples, "samples at once"),
            (self.tokens, "tokens (result, sources, text)"),
            (self.hidden, "wide"),
            (widths, "times"),
            self.workload.number(),
        ];
        MemoryLine::product(what, &factors)
    }
}
