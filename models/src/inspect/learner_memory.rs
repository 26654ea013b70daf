//! What a learner needs: weights, what it carries from iteration to iteration, and a micro batch on its way.
//!
//! Values are counted from the code, in widths of a token: what each op keeps for its backward pass. Kernels compute in
//! f32, and most of what they keep they keep in f32, whatever the weights are stored in. Not counted, since they are
//! less than a hundredth at published sizes: latents and conditions, angles of rotations, and the adapter's inner
//! products.

use burn::tensor::DType;
use retouch_settings::DeviceName;

use super::gpu;
use super::memory::{F32, MemoryLine, Workload, fuller};
use crate::lora::{Checkpointing, Projection, flat_len};

/// Vectors of a learner's state: policy, old policy, EMA, and AdamW's two moments.
const STATE_VECTORS: u64 = 5;
/// What the graph of a double-stream block keeps beside the block's input. Wide: what query and key norms saw (2),
/// attention's three inputs and its output (4), what the second modulation saw (1) and what GELU saw (4). Narrow: what
/// the projections to queries, keys and values were given (1), and that of attention's output (1).
const DOUBLE: Widths = Widths {
    wide: 11,
    narrow: 2,
};
/// The same of a single-stream block, which has one modulation.
const SINGLE: Widths = Widths {
    wide: 10,
    narrow: 1,
};
/// What is on its way back through a feed-forward: the gradient of its inner activations, attention's beside them, as
/// it is computed (5) and as it is passed on (5), and those of the block's output (3).
const PASSING: Widths = Widths { wide: 5, narrow: 8 };
/// Bytes of the program and its threads.
const PROGRAM: u64 = 16 << 20;

/// So many times the width of a token, in f32 and in the type of the weights.
#[derive(Clone, Copy)]
struct Widths {
    wide: u64,
    narrow: u64,
}

/// The transformer of an editor.
pub(super) struct Trunk<'a> {
    /// Number of its weights.
    pub(super) parameters: u64,
    /// Width of a token.
    pub(super) hidden: u64,
    /// Tokens of one sample: result, sources and text.
    pub(super) tokens: u64,
    /// Blocks with weights of their own for image and text.
    pub(super) double_blocks: u64,
    /// Blocks with one set of weights for all tokens.
    pub(super) single_blocks: u64,
    /// The layers that an adapter may change.
    pub(super) projections: &'a [Projection],
}

/// What is there at once in whichever moment needs more: halfway through a micro batch, or when the update is made
/// and published.
pub(super) fn learner(trunk: &Trunk<'_>, workload: &Workload) -> Vec<MemoryLine> {
    if workload.device != DeviceName::Cpu {
        return gpu::learner(trunk, workload);
    }
    let mut lines = fuller(halfway(trunk, workload), update(trunk, workload));
    lines.retain(|line| line.bytes > 0);
    lines
}

fn halfway(trunk: &Trunk<'_>, workload: &Workload) -> Vec<MemoryLine> {
    let (values, lanes) = (adapter(trunk, workload), lanes(workload));
    let copies = |what: &str, count: u64, unit: &str| {
        MemoryLine::product(what, &[(count, unit), (values, "values"), F32])
    };
    let mut lines = carried(trunk, workload);
    lines.push(copies("old policy on the device", 1, ""));
    lines.push(copies(
        "reference on the device",
        workload.reference.adapters(),
        "",
    ));
    lines.push(copies("policy as leaves of graphs", lanes, "lanes"));
    lines.push(copies("gradient sums", workload.shards as u64, "shards"));
    lines.extend(activations(trunk, workload));
    lines.push(held_back(trunk, workload));
    lines.extend(widened(trunk, workload));
    lines
}

fn update(trunk: &Trunk<'_>, workload: &Workload) -> Vec<MemoryLine> {
    let values = adapter(trunk, workload);
    let state = [(STATE_VECTORS, ""), (values, "values"), F32];
    let mut lines = carried(trunk, workload);
    lines.push(MemoryLine::product("the next state", &state));
    lines.push(MemoryLine::product("its blob", &state));
    let version = [(values, "values"), F32];
    lines.push(MemoryLine::product("the version's blob", &version));
    lines
}

/// What is there all the time.
fn carried(trunk: &Trunk<'_>, workload: &Workload) -> Vec<MemoryLine> {
    let values = adapter(trunk, workload);
    let state = [(STATE_VECTORS, ""), (values, "values"), F32];
    let reference = [(workload.reference.adapters(), ""), (values, "values"), F32];
    vec![
        MemoryLine::weights("transformer", trunk.parameters, workload.dtype),
        MemoryLine::product("policy, old policy, EMA and Adam's moments", &state),
        MemoryLine::product("the blob that they were read from", &state),
        MemoryLine::product("the reference", &reference),
        MemoryLine::product("the program", &[(PROGRAM, "B")]),
    ]
}

/// What a micro batch keeps until it goes back, and what is on the way then.
fn activations(trunk: &Trunk<'_>, workload: &Workload) -> Vec<MemoryLine> {
    let (double, single) = (trunk.double_blocks, trunk.single_blocks);
    let line = |what, count, widths| of_tokens(trunk, workload, what, count, widths);
    let input = Widths { wide: 0, narrow: 1 };
    let mut lines = match workload.checkpointing {
        Checkpointing::None => vec![
            line(
                "graphs of the double-stream blocks",
                double,
                DOUBLE.widened(),
            ),
            line(
                "graphs of the single-stream blocks",
                single,
                SINGLE.widened(),
            ),
        ],
        Checkpointing::Block => vec![
            line("inputs of the blocks", double + single, input),
            line("graph of one block", 1, graph_of_one(trunk, workload)),
        ],
    };
    lines.push(line("gradients on their way", 1, PASSING));
    lines
}

/// Each thread's heap keeps for a while what tensors of one size left, while others come.
fn held_back(trunk: &Trunk<'_>, workload: &Workload) -> MemoryLine {
    let passed = match workload.checkpointing {
        Checkpointing::None => PASSING,
        Checkpointing::Block => {
            let one = graph_of_one(trunk, workload);
            Widths {
                wide: one.wide + PASSING.wide,
                narrow: one.narrow + PASSING.narrow,
            }
        }
    };
    of_tokens(trunk, workload, "held back by the allocator", 1, passed)
}

/// All inputs are there as long as the last kind of blocks goes back.
fn graph_of_one(trunk: &Trunk<'_>, workload: &Workload) -> Widths {
    let last = match trunk.single_blocks {
        0 => DOUBLE,
        _ => SINGLE,
    };
    match workload.dtype {
        DType::F32 => last,
        _ => last.widened(),
    }
}

fn of_tokens(
    trunk: &Trunk<'_>,
    workload: &Workload,
    what: &str,
    count: u64,
    widths: Widths,
) -> MemoryLine {
    let factors = [
        (lanes(workload) * workload.micro_batch_size as u64, "pairs"),
        (trunk.tokens, "tokens (result, sources, text)"),
        (trunk.hidden, "wide"),
        (count, "times"),
        (widths.bytes(workload.dtype), "B"),
    ];
    MemoryLine::product(what, &factors)
}

impl Widths {
    /// Norms keep what they saw in f32.
    fn widened(self) -> Self {
        Self {
            wide: self.wide + 1,
            ..self
        }
    }

    /// Bytes for each number of a token's width.
    fn bytes(self, dtype: DType) -> u64 {
        4 * self.wide + dtype.size() as u64 * self.narrow
    }
}

/// Kernels read weights as f32: one at a time in each lane.
fn widened(trunk: &Trunk<'_>, workload: &Workload) -> Option<MemoryLine> {
    let largest = trunk.projections.iter();
    let largest = largest
        .map(|p| (p.in_features * p.out_features) as u64)
        .max();
    let factors = [
        (lanes(workload), "lanes"),
        (largest.unwrap_or(0), "values"),
        F32,
    ];
    (workload.dtype != DType::F32).then(|| MemoryLine::product("a weight as f32", &factors))
}

/// Values of the adapter.
pub(super) fn adapter(trunk: &Trunk<'_>, workload: &Workload) -> u64 {
    flat_len(&workload.lora, trunk.projections) as u64
}

/// A lane that has no shard has nothing to do.
fn lanes(workload: &Workload) -> u64 {
    workload.lanes.min(workload.shards).max(1) as u64
}
