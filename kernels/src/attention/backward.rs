//! The way back. For a block of queries: their scores again, the gradients of their probabilities, and from both the parts of
//! the gradients of q, k and v, all by the backend's tuned products. Between them one kernel goes through each row once.

use burn_backend::cubecl::dtype_to_elem_type;
use burn_backend::ops::FloatTensorOps;
use burn_backend::{DType, Shape, Slice, TensorMetadata};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::cast;
use burn_cubecl::ops::numeric::add;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{KeyArgs, Keys, Sizes, dense_heads};
use crate::cube::cube_sum;
use crate::product::product;
use crate::rows::{address_type, empty, units, vector_size};

const UNITS_MAX: usize = 256;

/// The gradients of an attention's inputs.
///
/// # Shapes
/// - q: `[B, H, S, hd]`, k and v: `[B, H, Sk, hd]`
#[derive(Clone, Debug)]
pub struct AttentionGrads {
    /// Of the queries.
    pub q: CubeTensor,
    /// Of the keys.
    pub k: CubeTensor,
    /// Of the values.
    pub v: CubeTensor,
}

/// The gradients of an attention with as many key heads as query heads, from that of its output: `at_once` queries after another.
///
/// # Shapes
/// - q, k, v, output and log_sums as [`attention`](super::attention) took and gave them
/// - grad: `[B, S, H * hd]`
pub fn attention_backward(
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    output: CubeTensor,
    log_sums: CubeTensor,
    grad: CubeTensor,
    keys: Option<&Keys>,
    scale: f32,
    at_once: usize,
) -> AttentionGrads {
    let (q, k, v) = (dense_heads(q), dense_heads(k), dense_heads(v));
    let sizes = Sizes::of(&q, &k);
    let (output, grad) = (heads_apart(output, &sizes), heads_apart(grad, &sizes));
    let dtype = q.dtype;
    let whole = at_once >= sizes.queries;
    // Sums over several blocks are f32 until the last is in.
    let sums = if whole { dtype } else { DType::F32 };
    let mut dq = (!whole).then(|| empty(&q, q.shape(), dtype));
    let (mut dk, mut dv): (Option<CubeTensor>, Option<CubeTensor>) = (None, None);
    for first in (0..sizes.queries).step_by(at_once) {
        let rows = at_once.min(sizes.queries - first);
        let part = |x: &CubeTensor| queries_of(x, first, rows);
        let (q_part, output_part, grad_part) = (part(&q), part(&output), part(&grad));
        let scores = product(q_part.clone(), transposed(&k), DType::F32);
        let p_grads = product(grad_part.clone(), transposed(&v), DType::F32);
        let at = Block {
            first,
            scale,
            sizes,
            rows,
        };
        let (p, s_grads) = score_grads(
            scores,
            p_grads,
            output_part,
            grad_part.clone(),
            log_sums.clone(),
            keys,
            at,
            dtype,
        );
        let dq_part = product(s_grads.clone(), k.clone(), dtype);
        dq = Some(match dq.take() {
            None => dq_part,
            Some(all) => {
                let mut slices = vec![Slice::full(); 4];
                slices[2] = Slice::from(first..first + rows);
                CubeBackend::float_slice_assign(all, &slices, dq_part)
            }
        });
        dv = Some(plus(dv.take(), product(transposed(&p), grad_part, sums)));
        dk = Some(plus(dk.take(), product(transposed(&s_grads), q_part, sums)));
    }
    let narrowed = |sum: Option<CubeTensor>| {
        let sum = sum.expect("there are queries");
        if sum.dtype == dtype {
            sum
        } else {
            cast(sum, dtype)
        }
    };
    AttentionGrads {
        q: dq.expect("there are queries"),
        k: narrowed(dk),
        v: narrowed(dv),
    }
}

fn plus(sum: Option<CubeTensor>, more: CubeTensor) -> CubeTensor {
    match sum {
        Some(sum) => add(sum, more),
        None => more,
    }
}

/// `[B, S, H * hd]` as `[B, H, S, hd]`, where it lies.
fn heads_apart(x: CubeTensor, sizes: &Sizes) -> CubeTensor {
    let (mut x, rows) = crate::rows::Rows::of(x);
    x.meta.shape = Shape::from([sizes.batch, sizes.heads, sizes.queries, sizes.width]);
    x.meta.strides = [rows.batch_stride, sizes.width, rows.row_stride, 1]
        .into_iter()
        .collect();
    x
}

/// Some of the queries, where they lie.
fn queries_of(x: &CubeTensor, first: usize, rows: usize) -> CubeTensor {
    let mut x = x.clone();
    let skipped = first * x.meta.strides()[2] * x.dtype.size();
    if skipped > 0 {
        x.handle = x.handle.offset_start(skipped as u64);
    }
    x.meta.shape[2] = rows;
    x
}

/// The last two dimensions the other way round.
fn transposed(x: &CubeTensor) -> CubeTensor {
    let mut x = x.clone();
    x.meta.shape.swap(2, 3);
    x.meta.strides.swap(2, 3);
    x
}

#[derive(Clone, Copy)]
struct Block {
    first: usize,
    rows: usize,
    scale: f32,
    sizes: Sizes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Steps {
    units: usize,
    ranged: bool,
    /// Vectors of a head.
    vectors: usize,
}

/// Probabilities, and the gradients of the products of q and k.
fn score_grads(
    scores: CubeTensor,
    p_grads: CubeTensor,
    output: CubeTensor,
    grad: CubeTensor,
    log_sums: CubeTensor,
    keys: Option<&Keys>,
    block: Block,
    dtype: DType,
) -> (CubeTensor, CubeTensor) {
    let (client, sizes) = (scores.client.clone(), block.sizes);
    let shape = [sizes.batch, sizes.heads, block.rows, sizes.keys];
    let (p, s_grads) = (empty(&scores, shape, dtype), empty(&scores, shape, dtype));
    let keys = KeyArgs::of(keys, &log_sums);
    let strides = [&output, &grad].map(|x| x.meta.strides()[..3].to_vec());
    let [scores_pitch, p_grads_pitch] = [&scores, &p_grads].map(|x| x.meta.strides()[2]);
    let types = [output.dtype, grad.dtype];
    let inner = vector_size(
        &client,
        &types,
        &[],
        &[&strides.concat()[..], &[sizes.width]].concat(),
    );
    let vector = vector_size(
        &client,
        &[DType::F32],
        &[],
        &[sizes.keys, scores_pitch, p_grads_pitch],
    );
    let steps = Steps {
        units: units(&client, sizes.keys / vector, UNITS_MAX),
        ranged: keys.given,
        vectors: sizes.width / inner,
    };
    score_grads_kernel::launch(
        &client,
        CubeCount::Static(block.rows as u32, (sizes.batch * sizes.heads) as u32, 1),
        CubeDim::new_1d(steps.units as u32),
        address_type(&[&scores, &p_grads, &output, &grad]),
        vector,
        inner,
        scores.into_buffer_arg(),
        p_grads.into_buffer_arg(),
        output.into_buffer_arg(),
        grad.into_buffer_arg(),
        log_sums.into_buffer_arg(),
        keys.first.into_buffer_arg(),
        keys.last.into_buffer_arg(),
        p.clone().into_buffer_arg(),
        s_grads.clone().into_buffer_arg(),
        sizes.heads,
        sizes.queries,
        block.first,
        block.rows,
        sizes.keys / vector,
        scores_pitch / vector,
        p_grads_pitch / vector,
        strides[0][0] / inner,
        strides[0][1] / inner,
        strides[0][2] / inner,
        strides[1][0] / inner,
        strides[1][1] / inner,
        strides[1][2] / inner,
        keys.batch_stride,
        keys.row_stride,
        block.scale,
        steps,
        [types[0], types[1], dtype].map(dtype_to_elem_type),
    );
    (p, s_grads)
}

#[cube(launch, address_type = "dynamic")]
fn score_grads_kernel<O: Float, G: Float, E: Float, N: Size, M: Size>(
    scores: &[Vector<f32, N>],
    p_grads: &[Vector<f32, N>],
    output: &[Vector<O, M>],
    grad: &[Vector<G, M>],
    log_sums: &[f32],
    first_keys: &[u32],
    last_keys: &[u32],
    p: &mut [Vector<E, N>],
    s_grads: &mut [Vector<E, N>],
    heads: usize,
    queries: usize,
    first_query: usize,
    rows: usize,
    vectors: usize,
    scores_pitch: usize,
    p_grads_pitch: usize,
    output_batch: usize,
    output_head: usize,
    output_row: usize,
    grad_batch: usize,
    grad_head: usize,
    grad_row: usize,
    range_batch: usize,
    range_row: usize,
    scale: f32,
    #[comptime] steps: Steps,
    #[define(O, G, E)] _types: [ElemType; 3],
) {
    let (row, index) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let (batch, head) = (index / heads, index % heads);
    let unit = UNIT_POS as usize;
    // The part of a probability's gradient that its softmax takes off: sum over keys of p dp = output . grad.
    let output_from = batch * output_batch + head * output_head + row * output_row;
    let grad_from = batch * grad_batch + head * grad_head + row * grad_row;
    let mut own = 0.0f32.runtime();
    #[unroll]
    for i in 0..comptime!(steps.vectors.div_ceil(steps.units)) {
        let at = unit + comptime!(i * steps.units);
        if at < steps.vectors {
            let value = Vector::<f32, M>::cast_from(output[output_from + at]);
            own += Vector::vector_sum(value * Vector::cast_from(grad[grad_from + at]));
        }
    }
    let taken_off = cube_sum(own, steps.units);
    let query = first_query + row;
    let log_sum = log_sums[index * queries + query];
    let (mut first, mut last) = (0usize.runtime(), vectors * N::value());
    if comptime!(steps.ranged) {
        first = first_keys[batch * range_batch + query * range_row] as usize;
        last = last_keys[batch * range_batch + query * range_row] as usize;
    }
    for turn in 0..vectors.div_ceil(steps.units) {
        let at = turn * steps.units + unit;
        if at < vectors {
            let scores = scores[(index * rows + row) * scores_pitch + at] * Vector::new(scale);
            let p_grads = p_grads[(index * rows + row) * p_grads_pitch + at];
            let mut seen = (scores - Vector::new(log_sum)).exp();
            if comptime!(steps.ranged) {
                #[unroll]
                for i in 0..N::value() {
                    let key = at * N::value() + i;
                    let sees = key >= first && key < last;
                    seen.insert(i, select(sees, seen.extract(i), 0.0f32));
                }
            }
            let to = (index * rows + row) * vectors + at;
            p[to] = Vector::cast_from(seen);
            s_grads[to] =
                Vector::cast_from(seen * (p_grads - Vector::new(taken_off)) * Vector::new(scale));
        }
    }
}
