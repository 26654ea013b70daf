//! Reading and making the flex backend's tensors. Kernels compute in f32: narrower tensors are widened
//! on their way in, and results narrowed on their way out.

use burn::tensor::{Bytes, DType, Element, Shape};
use burn_flex::{FlexTensor, Layout};
use half::{bf16, f16};
use rayon::prelude::*;

/// Numbers per task of a pass over memory.
const CHUNK: usize = 1 << 14;

/// The tensor with contiguous f32 values, copied only if they are not.
pub(crate) fn dense(tensor: FlexTensor) -> FlexTensor {
    let tensor = if tensor.is_contiguous() {
        tensor
    } else {
        tensor.to_contiguous()
    };
    match tensor.dtype() {
        DType::BF16 => widened(&tensor, bf16::to_f32),
        DType::F16 => widened(&tensor, f16::to_f32),
        _ => tensor,
    }
}

/// The f32 tensor with a contiguous last dimension, copied only if it is not.
pub(crate) fn dense_rows(tensor: FlexTensor) -> FlexTensor {
    if tensor.dtype() != DType::F32 {
        return dense(tensor);
    }
    let strides = tensor.layout().strides();
    let usable = strides.last().is_none_or(|&last| last == 1) && strides.iter().all(|&s| s >= 0);
    if usable {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// What a backward pass keeps of an input that was made [`dense`]: the input itself if it is narrower,
/// or training would hold a wide copy of every weight.
pub(crate) fn kept(given: &FlexTensor, dense: &FlexTensor) -> FlexTensor {
    match given.dtype() {
        DType::F32 => dense.clone(),
        _ => given.clone(),
    }
}

fn widened<E: Element + bytemuck::Pod>(tensor: &FlexTensor, wide: fn(E) -> f32) -> FlexTensor {
    let narrow: &[E] = tensor.as_slice().expect("a contiguous tensor");
    let values = written(narrow.len(), |out| {
        for_row_blocks(out, 1, CHUNK, |start, out| {
            let narrow = &narrow[start..];
            out.iter_mut()
                .zip(narrow)
                .for_each(|(out, &x)| *out = wide(x));
        });
    });
    tensor_like(values, tensor)
}

/// An f32 tensor as `dtype`.
pub(crate) fn narrowed(tensor: FlexTensor, dtype: DType) -> FlexTensor {
    match dtype {
        DType::BF16 => converted(tensor, dtype, bf16::from_f32),
        DType::F16 => converted(tensor, dtype, f16::from_f32),
        _ => tensor,
    }
}

fn converted<E: Element + bytemuck::Pod + Send>(
    tensor: FlexTensor,
    dtype: DType,
    narrow: fn(f32) -> E,
) -> FlexTensor {
    let tensor = dense(tensor);
    let chunks = values(&tensor).par_iter().with_min_len(CHUNK);
    let elements: Vec<E> = chunks.map(|&x| narrow(x)).collect();
    let layout = Layout::contiguous(tensor.layout().shape().clone());
    FlexTensor::new(Bytes::from_elems(elements), layout, dtype)
}

/// The values of a tensor that is [`dense`].
pub(crate) fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor")
}

/// All values behind a tensor from its first one on; its strides say where the others are.
pub(crate) fn strided_values(tensor: &FlexTensor) -> &[f32] {
    &tensor.storage()[tensor.layout().start_offset()..]
}

pub(crate) fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    let shape = tensor.layout().shape();
    std::array::from_fn(|i| shape[i])
}

pub(crate) fn strides<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    std::array::from_fn(|i| tensor.layout().strides()[i] as usize)
}

/// Length of the last dimension.
pub(crate) fn width(tensor: &FlexTensor) -> usize {
    *tensor
        .layout()
        .shape()
        .last()
        .expect("at least one dimension")
}

pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    let layout = Layout::contiguous(shape.into());
    assert_eq!(layout.num_elements(), values.len());
    FlexTensor::new(Bytes::from_elems(values), layout, DType::F32)
}

pub(crate) fn tensor_like(values: Vec<f32>, like: &FlexTensor) -> FlexTensor {
    tensor(values, like.layout().shape().clone())
}

/// `len` numbers, all written by `write` before it reads them.
pub(crate) fn written(len: usize, write: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut values = Vec::<f32>::with_capacity(len);
    // SAFETY: the capacity is there, any bits are an f32, and `write` fills them all before
    // they are read: zeroing them first would cost every op a pass over its output.
    unsafe {
        let room = std::slice::from_raw_parts_mut(values.as_mut_ptr(), len);
        write(room);
        values.set_len(len);
    }
    values
}

/// Calls `kernel` on chunks of `rows` rows of `width` numbers: first row, rows of the output.
pub(crate) fn for_row_blocks(
    out: &mut [f32],
    width: usize,
    rows: usize,
    kernel: impl Fn(usize, &mut [f32]) + Sync,
) {
    if out.is_empty() {
        return;
    }
    if out.len() <= CHUNK {
        for (index, block) in out.chunks_mut(rows * width).enumerate() {
            kernel(index * rows, block);
        }
        return;
    }
    out.par_chunks_mut(rows * width)
        .enumerate()
        .for_each(|(index, block)| kernel(index * rows, block));
}

/// An output as long as `inputs`, made chunk by chunk by `kernel`.
pub(crate) fn map<const N: usize>(
    inputs: [&[f32]; N],
    kernel: impl Fn([&[f32]; N], &mut [f32]) + Sync,
) -> Vec<f32> {
    let len = inputs[0].len();
    assert!(inputs.iter().all(|input| input.len() == len));
    written(len, |out| {
        for_row_blocks(out, 1, CHUNK, |start, out| {
            kernel(inputs.map(|input| &input[start..start + out.len()]), out)
        });
    })
}

/// Rows per task such that a task has about [`CHUNK`] numbers.
pub(crate) fn block_rows(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// Rows of a block whose sums are combined in order, so that sums do not depend on threads.
pub(crate) const SUM_ROWS: usize = 64;

/// Sums over blocks of [`SUM_ROWS`] rows: `partial(rows, sums)` fills `width` sums of a block, blocks are added in order.
pub(crate) fn sum_blocks(
    rows: usize,
    width: usize,
    partial: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    let blocks = rows.div_ceil(SUM_ROWS);
    let run = |(index, sums): (usize, &mut [f32])| {
        let start = index * SUM_ROWS;
        partial(start..rows.min(start + SUM_ROWS), sums);
    };
    let mut partials = vec![0.0; blocks.max(1) * width];
    if rows * width <= CHUNK {
        partials
            .chunks_mut(width.max(1))
            .take(blocks)
            .enumerate()
            .for_each(run);
    } else {
        partials
            .par_chunks_mut(width)
            .take(blocks)
            .enumerate()
            .for_each(run);
    }
    let (total, others) = partials.split_at_mut(width);
    for sums in others.chunks(width.max(1)) {
        total
            .iter_mut()
            .zip(sums)
            .for_each(|(total, sum)| *total += sum);
    }
    partials.truncate(width);
    partials
}
