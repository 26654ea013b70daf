//! The two passes of attention, a tile of queries at a time.

use std::ops::Range;

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::heads::{HeadGrad, Heads, SharedHeads};
use super::mask::{AttentionMask, Lengths};
use super::product::{Matrix, MatrixMut, Onto, PANEL, Packed, multiply_block};
use super::scratch;
use super::simd::{Simd, simd_fn};
use super::values::{values, written};

/// Queries of a tile: its scores stay in the second cache.
const TILE: usize = 96;

/// Multiply-adds below which one thread does it all.
const PARALLEL_MIN: usize = 1 << 18;

pub(crate) struct Problem<'a> {
    q: Heads<'a>,
    k: Heads<'a>,
    v: Heads<'a>,
    mask: &'a AttentionMask,
    lengths: Lengths,
    scale: f32,
}

impl<'a> Problem<'a> {
    pub(crate) fn new(
        q: &'a FlexTensor,
        k: &'a FlexTensor,
        v: &'a FlexTensor,
        mask: &'a AttentionMask,
        scale: f32,
    ) -> Self {
        let [q, k, v] = [q, k, v].map(Heads::of);
        let lengths = Lengths {
            batch: q.dims[0],
            queries: q.dims[2],
            keys: k.dims[2],
        };
        Self {
            q,
            k,
            v,
            mask,
            lengths,
            scale,
        }
    }

    fn width(&self) -> usize {
        self.q.dims[3]
    }

    /// Query heads that share a key head.
    fn group(&self) -> usize {
        self.q.dims[1] / self.k.dims[1]
    }

    fn query_heads(&self, kv_head: usize) -> Range<usize> {
        kv_head * self.group()..(kv_head + 1) * self.group()
    }

    fn padded_keys(&self) -> usize {
        self.lengths.keys.next_multiple_of(PANEL)
    }

    /// Runs `work` for every key head of every batch row: batch row, key head.
    fn for_each_key_head(&self, work: impl Fn(usize, usize) + Sync) {
        let heads = self.k.dims[1];
        let count = self.lengths.batch * heads;
        let each = |index: usize| work(index / heads, index % heads);
        let size = self.lengths.queries * self.lengths.keys * self.width() * self.q.dims[1];
        if size * self.lengths.batch < PARALLEL_MIN {
            (0..count).for_each(each);
        } else {
            (0..count).into_par_iter().for_each(each);
        }
    }

    /// The tiles of a query head.
    fn tiles(&self, batch: usize) -> impl Iterator<Item = Tile> {
        let starts = (0..self.lengths.queries).step_by(TILE);
        starts.map(move |start| Tile::new(self, batch, start))
    }
}

/// Some queries of a head and the keys they see.
struct Tile {
    queries: Range<usize>,
    /// What each query sees.
    seen: Vec<Range<usize>>,
    /// The keys that any query of the tile sees.
    keys: Range<usize>,
}

impl Tile {
    fn new(problem: &Problem, batch: usize, start: usize) -> Self {
        let queries = start..problem.lengths.queries.min(start + TILE);
        let seen: Vec<_> = queries
            .clone()
            .map(|query| problem.mask.keys_of(batch, query, problem.lengths))
            .map(|keys| if keys.is_empty() { 0..0 } else { keys })
            .collect();
        let visible = || seen.iter().filter(|keys| !keys.is_empty());
        let first = visible().map(|keys| keys.start).min().unwrap_or(0);
        let last = visible().map(|keys| keys.end).max().unwrap_or(first);
        Self {
            queries,
            seen,
            keys: first..last,
        }
    }

    /// The panels of packed keys that hold [`keys`](Self::keys).
    fn panels(&self) -> Range<usize> {
        let first = self.keys.start / PANEL * PANEL;
        first..self.keys.end.next_multiple_of(PANEL).max(first)
    }
}

/// A block of scores: rows are queries, columns the panels of a tile.
struct Block<'a> {
    values: &'a mut [f32],
    panels: Range<usize>,
    rows: usize,
}

impl<'a> Block<'a> {
    fn new(room: &'a mut [f32], tile: &Tile) -> Self {
        let (panels, rows) = (tile.panels(), tile.queries.len());
        Self {
            values: &mut room[..rows * panels.len()],
            panels,
            rows,
        }
    }

    /// `rows keys^T` with the keys packed as columns.
    fn fill(&mut self, rows: Matrix, keys: Packed) {
        let columns = self.panels.len();
        let block = MatrixMut::new(self.values, self.rows, columns);
        let keys = keys.panel_range(self.panels.clone());
        multiply_block(block, rows, keys, 1.0, Onto::Zero);
    }

    /// The columns of the keys `keys`.
    fn columns(&self, keys: &Range<usize>) -> Matrix<'_> {
        let offset = self.panels.start;
        Matrix::new(self.values, self.rows, self.panels.len())
            .column_range(keys.start - offset..keys.end - offset)
    }
}

/// The output `[B, S, Hq * hd]` and the log of the sum of exponentials of every row of scores, `[B, Hq, S]`.
pub(crate) fn forward(problem: &Problem) -> (Vec<f32>, Vec<f32>) {
    let [batch, heads, queries, width] = problem.q.dims;
    let mut log_sums = vec![0.0; batch * heads * queries];
    let output = written(batch * heads * queries * width, |output| {
        let output = SharedHeads::joined(output, problem.q.dims);
        let sums = SharedHeads::separate(&mut log_sums, [batch, heads, queries, 1]);
        problem.for_each_key_head(|batch, kv_head| {
            forward_key_head(problem, batch, kv_head, &output, &sums);
        });
    });
    (output, log_sums)
}

fn forward_key_head(
    problem: &Problem,
    batch: usize,
    kv_head: usize,
    output: &SharedHeads,
    log_sums: &SharedHeads,
) {
    let (keys, width) = (problem.lengths.keys, problem.width());
    let room = [
        Packed::room(width, keys),
        Packed::room(keys, width),
        TILE * problem.padded_keys(),
        TILE,
        TILE,
    ];
    scratch::split(room, |[for_k, for_v, for_scores, scales, logs]| {
        let k = Packed::new(problem.k.matrix(batch, kv_head).transposed(), for_k);
        let v = Packed::new(problem.v.matrix(batch, kv_head), for_v);
        for tile in problem.tiles(batch) {
            for head in problem.query_heads(kv_head) {
                let queries = tile.queries.clone();
                let mut scores = Block::new(for_scores, &tile);
                scores.fill(problem.q.matrix(batch, head).row_range(queries.clone()), k);
                exponentiate(&mut scores, &tile.seen, problem.scale, scales, logs);
                // SAFETY: no other task has this head.
                let (mut output, mut log_sums) = unsafe {
                    (
                        output.matrix(batch, head, queries.clone()),
                        log_sums.matrix(batch, head, queries),
                    )
                };
                let (seen, v) = (scores.columns(&tile.keys), v.row_range(tile.keys.clone()));
                multiply_block(output.reborrow(), seen, v, 1.0, Onto::Zero);
                scale_rows(&mut output, scales);
                log_sums.fill_column(logs);
            }
        }
    });
}

/// Fills the gradients of q, k and v that are wanted; they are zeros before.
pub(crate) fn backward(
    problem: &Problem,
    output: &FlexTensor,
    log_sums: &[f32],
    grad: &FlexTensor,
    grads: &mut [Option<HeadGrad>; 3],
) {
    let pass = Backward {
        problem,
        output: Heads::joined(values(output), problem.q.dims),
        grad: Heads::joined(values(grad), problem.q.dims),
        log_sums,
        grads: grads
            .each_mut()
            .map(|grad| grad.as_mut().map(HeadGrad::shared)),
    };
    problem.for_each_key_head(|batch, kv_head| pass.key_head(batch, kv_head));
}

struct Backward<'a> {
    problem: &'a Problem<'a>,
    output: Heads<'a>,
    grad: Heads<'a>,
    log_sums: &'a [f32],
    grads: [Option<SharedHeads<'a>>; 3],
}

/// The packed keys and values of a head.
struct PackedHead<'a> {
    k_columns: Packed<'a>,
    k_rows: Packed<'a>,
    v_columns: Packed<'a>,
}

impl Backward<'_> {
    fn key_head(&self, batch: usize, kv_head: usize) {
        let problem = self.problem;
        let (keys, width) = (problem.lengths.keys, problem.width());
        let (columns, rows) = (Packed::room(width, keys), Packed::room(keys, width));
        let tile_room = TILE * problem.padded_keys() * 2 + Packed::room(TILE, width) + TILE;
        let room = [columns, rows, columns, tile_room];
        scratch::split(room, |[for_k, for_k_rows, for_v, for_tile]| {
            let (k, v) = (&problem.k, &problem.v);
            let head = PackedHead {
                k_columns: Packed::new(k.matrix(batch, kv_head).transposed(), for_k),
                k_rows: Packed::new(k.matrix(batch, kv_head), for_k_rows),
                v_columns: Packed::new(v.matrix(batch, kv_head).transposed(), for_v),
            };
            for tile in problem.tiles(batch) {
                for query_head in problem.query_heads(kv_head) {
                    self.tile([batch, query_head, kv_head], &tile, &head, for_tile);
                }
            }
        });
    }

    fn tile(
        &self,
        [batch, head, kv_head]: [usize; 3],
        tile: &Tile,
        packed: &PackedHead,
        room: &mut [f32],
    ) {
        let problem = self.problem;
        let (for_scores, room) = room.split_at_mut(TILE * problem.padded_keys());
        let (for_grads, room) = room.split_at_mut(TILE * problem.padded_keys());
        let (along, for_rows) = room.split_at_mut(TILE);
        let queries = || tile.queries.clone();
        let q = problem.q.matrix(batch, head).row_range(queries());
        let grad = self.grad.matrix(batch, head).row_range(queries());

        let mut scores = Block::new(for_scores, tile);
        scores.fill(q, packed.k_columns);
        let first = (batch * problem.q.dims[1] + head) * problem.lengths.queries;
        let log_sums = &self.log_sums[first..][queries()];
        normalize(&mut scores, &tile.seen, problem.scale, log_sums);

        let mut score_grads = Block::new(for_grads, tile);
        score_grads.fill(grad, packed.v_columns);
        for (along, query) in along.iter_mut().zip(queries()) {
            let [output, grad] = [&self.output, &self.grad].map(|t| t.row(batch, head, query));
            *along = dot(output, grad);
        }
        differentiate(&scores, &mut score_grads, along, problem.scale);

        // SAFETY: no other task has this key head or its query heads.
        unsafe {
            if let Some(dq) = &self.grads[0] {
                let k = packed.k_rows.row_range(tile.keys.clone());
                let dq = dq.matrix(batch, head, queries());
                multiply_block(dq, score_grads.columns(&tile.keys), k, 1.0, Onto::Zero);
            }
            if let Some(dk) = &self.grads[1] {
                let dk = dk.matrix(batch, kv_head, tile.keys.clone());
                let q = Packed::new(q, for_rows);
                let grads = score_grads.columns(&tile.keys).transposed();
                multiply_block(dk, grads, q, 1.0, Onto::Current);
            }
            if let Some(dv) = &self.grads[2] {
                let dv = dv.matrix(batch, kv_head, tile.keys.clone());
                let grad = Packed::new(grad, for_rows);
                let probabilities = scores.columns(&tile.keys).transposed();
                multiply_block(dv, probabilities, grad, 1.0, Onto::Current);
            }
        }
    }
}

simd_fn! {
    /// Scores become `exp(scale score - max)` where seen and zero elsewhere; `scales` one over their sums, `logs` the log-sum-exp.
    fn exponentiate(scores: &mut Block, seen: &[Range<usize>], scale: f32, scales: &mut [f32], logs: &mut [f32]) = exponentiate_kernel;
    /// Scores become probabilities where seen and zero elsewhere.
    fn normalize(scores: &mut Block, seen: &[Range<usize>], scale: f32, logs: &[f32]) = normalize_kernel;
    /// Gradients of probabilities become those of scores; `along` is the probabilities' mean gradient of each row.
    fn differentiate(probabilities: &Block, grads: &mut Block, along: &[f32], scale: f32) = differentiate_kernel;
    fn scale_rows(rows: &mut MatrixMut, scales: &[f32]) = scale_rows_kernel;
    fn dot(a: &[f32], b: &[f32]) -> f32 = dot_kernel;
}

impl Block<'_> {
    /// Row `row`, of which only `keys` is not zero afterwards.
    #[inline(always)]
    fn seen_part(&mut self, row: usize, keys: &Range<usize>) -> &mut [f32] {
        let width = self.panels.len();
        let row = &mut self.values[row * width..][..width];
        if keys.is_empty() {
            row.fill(0.0);
            return &mut [];
        }
        let (start, end) = (keys.start - self.panels.start, keys.end - self.panels.start);
        row[..start].fill(0.0);
        row[end..].fill(0.0);
        &mut row[start..end]
    }
}

#[inline(always)]
fn exponentiate_kernel<S: Simd>(
    s: S,
    scores: &mut Block,
    seen: &[Range<usize>],
    scale: f32,
    scales: &mut [f32],
    logs: &mut [f32],
) {
    let factor = s.splat(scale);
    for (i, keys) in seen.iter().enumerate() {
        let row = scores.seen_part(i, keys);
        if row.is_empty() {
            (scales[i], logs[i]) = (0.0, 0.0);
            continue;
        }
        let max = s.max_of(row) * scale;
        let shift = s.splat(-max);
        s.accumulate([], row, |[], score| s.exp(s.mul_add(score, factor, shift)));
        let sum = s.zip_sum([row], |[x]| x);
        (scales[i], logs[i]) = (1.0 / sum, max + sum.ln());
    }
}

#[inline(always)]
fn normalize_kernel<S: Simd>(
    s: S,
    scores: &mut Block,
    seen: &[Range<usize>],
    scale: f32,
    logs: &[f32],
) {
    let factor = s.splat(scale);
    for (i, keys) in seen.iter().enumerate() {
        let shift = s.splat(-logs[i]);
        let row = scores.seen_part(i, keys);
        s.accumulate([], row, |[], score| s.exp(s.mul_add(score, factor, shift)));
    }
}

#[inline(always)]
fn differentiate_kernel<S: Simd>(
    s: S,
    probabilities: &Block,
    grads: &mut Block,
    along: &[f32],
    scale: f32,
) {
    let width = grads.panels.len();
    if width == 0 {
        return;
    }
    let factor = s.splat(scale);
    let rows = probabilities.values.chunks_exact(width);
    for ((p, g), along) in rows.zip(grads.values.chunks_exact_mut(width)).zip(along) {
        let along = s.splat(*along);
        s.accumulate([p], g, |[p], g| s.mul(s.mul(p, factor), s.sub(g, along)));
    }
}

#[inline(always)]
fn scale_rows_kernel<S: Simd>(s: S, rows: &mut MatrixMut, scales: &[f32]) {
    for (i, scale) in scales.iter().enumerate().take(rows.rows) {
        let scale = s.splat(*scale);
        s.accumulate([], rows.row(i), |[], x| s.mul(x, scale));
    }
}

#[inline(always)]
fn dot_kernel<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    s.zip_sum([a, b], |[a, b]| s.mul(a, b))
}
