//! Attention that keeps no scores: a forward pass over tiles of keys, and a way back that computes scores again for as many
//! queries at a time as a bounded workspace holds (FlashAttention, arXiv 2205.14135 and 2307.08691).

mod backward;
mod forward;
mod tile;

use burn_backend::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

pub use backward::{AttentionGrads, attention_backward};
pub use forward::attention;

/// Which keys a query sees: a range for each, that moves with the query in one direction alone.
///
/// # Shapes
/// - first, last (one past it): `[B or 1, S or 1]`, u32
#[derive(Clone, Debug)]
pub struct Keys {
    /// The first key.
    pub first: CubeTensor,
    /// One past the last key.
    pub last: CubeTensor,
}

/// The sizes of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    batch: usize,
    heads: usize,
    key_heads: usize,
    queries: usize,
    keys: usize,
    width: usize,
}

impl Sizes {
    fn of(q: &CubeTensor, k: &CubeTensor) -> Self {
        let (q, k) = (q.shape(), k.shape());
        Self {
            batch: q[0],
            heads: q[1],
            key_heads: k[1],
            queries: q[2],
            keys: k[2],
            width: q[3],
        }
    }
}

/// The ranges as a kernel takes them.
struct KeyArgs {
    first: CubeTensor,
    last: CubeTensor,
    batch_stride: usize,
    row_stride: usize,
    given: bool,
}

impl KeyArgs {
    fn of(keys: Option<&Keys>, instead: &CubeTensor) -> Self {
        let Some(keys) = keys else {
            return Self {
                first: instead.clone(),
                last: instead.clone(),
                batch_stride: 0,
                row_stride: 0,
                given: false,
            };
        };
        let (first, last) = (
            into_contiguous(keys.first.clone()),
            into_contiguous(keys.last.clone()),
        );
        let [batch, rows] = [first.shape()[0], first.shape()[1]];
        Self {
            first,
            last,
            batch_stride: if batch > 1 { rows } else { 0 },
            row_stride: if rows > 1 { 1 } else { 0 },
            given: true,
        }
    }
}

/// The numbers of a head side by side; all else as it lies.
fn dense_heads(x: CubeTensor) -> CubeTensor {
    match x.meta.strides()[3] {
        1 => x,
        _ => into_contiguous(x),
    }
}
