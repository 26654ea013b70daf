//! Tensors as rows, and how much of one a unit reads at once.

use burn_backend::{DType, Shape, TensorMetadata};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Where the rows of `[B, S, D]` begin, the numbers of a row side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) batch: usize,
    pub(crate) length: usize,
    pub(crate) width: usize,
    /// From a batch row to the next, in numbers.
    pub(crate) batch_stride: usize,
    /// From a row to the next, in numbers.
    pub(crate) row_stride: usize,
}

impl Rows {
    /// The rows of a tensor with any number of leading dimensions, as they lie where three dimensions say it.
    pub(crate) fn of(tensor: CubeTensor) -> (CubeTensor, Self) {
        let shape = tensor.shape();
        let rank = shape.num_dims();
        let strides = tensor.meta.strides();
        if rank == 3 && strides[2] == 1 {
            let rows = Self {
                batch: shape[0],
                length: shape[1],
                width: shape[2],
                batch_stride: strides[0],
                row_stride: strides[1],
            };
            return (tensor, rows);
        }
        let tensor = into_contiguous(tensor);
        let width = shape[rank - 1];
        let length = shape.num_elements() / width.max(1);
        let rows = Self {
            batch: 1,
            length,
            width,
            batch_stride: length * width,
            row_stride: width,
        };
        (tensor, rows)
    }

    /// The rows of a tensor of the same shape as the one that `rows` are of.
    pub(crate) fn like(tensor: CubeTensor, rows: &Self) -> (CubeTensor, Self) {
        let (tensor, own) = Self::of(tensor);
        if (own.batch, own.length) == (rows.batch, rows.length) {
            return (tensor, own);
        }
        // Counted as one batch row by one of the two alone.
        let tensor = into_contiguous(tensor);
        let contiguous = Self {
            batch_stride: rows.length * rows.width,
            row_stride: rows.width,
            ..*rows
        };
        (tensor, contiguous)
    }

    /// What a kernel finds them by, which reads `vector` numbers at once.
    pub(crate) fn strides(&self, vector: usize) -> RowStridesLaunch {
        RowStridesLaunch::new(self.batch_stride / vector, self.row_stride / vector)
    }

    /// Number of rows.
    pub(crate) fn count(&self) -> usize {
        self.batch * self.length
    }

    /// Whether every row begins at a multiple of `vector` numbers.
    fn allows(&self, vector: usize) -> bool {
        [self.width, self.batch_stride, self.row_stride]
            .iter()
            .all(|len| len.is_multiple_of(vector))
    }
}

/// How far apart rows begin, in vectors.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct RowStrides {
    batch: usize,
    row: usize,
}

#[cube]
impl RowStrides {
    /// Where a row begins.
    pub(crate) fn start(&self, batch: usize, position: usize) -> usize {
        batch * self.batch + position * self.row
    }
}

/// One row for all rows of a tensor, or one for each of its batch rows.
pub(crate) struct Parameter {
    pub(crate) tensor: CubeTensor,
    /// From one to the next, in numbers.
    pub(crate) batch_stride: usize,
    /// Whether there is one; if not, the tensor is any.
    pub(crate) given: bool,
}

impl Parameter {
    /// Of `[D]`, `[1, 1, D]` or `[B, 1, D]`; where there is none, `instead` stands for it.
    pub(crate) fn of(tensor: Option<CubeTensor>, instead: &CubeTensor) -> Self {
        let Some(tensor) = tensor else {
            return Self {
                tensor: instead.clone(),
                batch_stride: 0,
                given: false,
            };
        };
        let rank = tensor.rank();
        let tensor = match tensor.meta.strides()[rank - 1] {
            1 => tensor,
            _ => into_contiguous(tensor),
        };
        let several = rank == 3 && tensor.shape()[0] > 1;
        Self {
            batch_stride: if several { tensor.meta.strides()[0] } else { 0 },
            tensor,
            given: true,
        }
    }
}

/// How many numbers a unit reads at once: as many as the device likes for the narrowest type, and as divide all `lens`.
pub(crate) fn vector_size(
    client: &Client,
    dtypes: &[DType],
    rows: &[Rows],
    lens: &[usize],
) -> usize {
    let narrowest = dtypes.iter().map(DType::size).min().unwrap_or(4);
    client
        .io_optimized_vector_sizes(narrowest)
        .filter(|&size| {
            lens.iter().all(|len| len.is_multiple_of(size))
                && rows.iter().all(|rows| rows.allows(size))
        })
        .max()
        .unwrap_or(1)
}

/// An uninitialized tensor on the device of `like`, without gaps.
pub(crate) fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(
        like.client.clone(),
        like.device.clone(),
        shape.into(),
        dtype,
    )
}

/// What addresses all of them.
pub(crate) fn address_type(tensors: &[&CubeTensor]) -> AddressType {
    let types = tensors.iter().map(|tensor| tensor.required_address_type());
    types.max().unwrap_or_default()
}

/// One cube each; devices limit a dimension, so that long lists are folded in two. The last cubes may have nothing to do.
pub(crate) fn cubes(client: &Client, count: usize) -> CubeCount {
    let (most, _, _) = client.properties().hardware.max_cube_count;
    let count = count as u32;
    let folds = count.div_ceil(most).max(1);
    CubeCount::Static(count.div_ceil(folds), folds, 1)
}

/// A power of two of units for `work` independent pieces of it in a cube.
pub(crate) fn units(client: &Client, work: usize, most: usize) -> usize {
    let most = most.min(client.properties().hardware.max_units_per_cube as usize);
    work.next_power_of_two().clamp(32.min(most), most)
}
