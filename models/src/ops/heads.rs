//! Tensors of heads, `[B, H, S, hd]`, in memory of any order.

use std::marker::PhantomData;
use std::ops::Range;

use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};

use super::product::{Matrix, MatrixMut};
use super::values::{dims, strided_values, strides, written};

/// Heads to read; a row of a head is contiguous.
pub(crate) struct Heads<'a> {
    values: &'a [f32],
    pub(crate) dims: [usize; 4],
    strides: [usize; 4],
}

impl<'a> Heads<'a> {
    pub(crate) fn of(tensor: &'a FlexTensor) -> Self {
        Self {
            values: strided_values(tensor),
            dims: dims(tensor),
            strides: strides(tensor),
        }
    }

    /// The heads of `[B, S, H * hd]`.
    pub(crate) fn joined(values: &'a [f32], dims: [usize; 4]) -> Self {
        let [_, heads, length, width] = dims;
        Self {
            values,
            dims,
            strides: [length * heads * width, width, heads * width, 1],
        }
    }

    /// `[S, hd]` of one head.
    pub(crate) fn matrix(&self, batch: usize, head: usize) -> Matrix<'a> {
        let [of_batch, of_head, of_row, _] = self.strides;
        let start = batch * of_batch + head * of_head;
        let [_, _, length, width] = self.dims;
        Matrix::strided(&self.values[start..], [length, width], [of_row, 1])
    }

    /// One row of one head.
    #[inline(always)]
    pub(crate) fn row(&self, batch: usize, head: usize, position: usize) -> &'a [f32] {
        let [of_batch, of_head, of_row, _] = self.strides;
        let start = batch * of_batch + head * of_head + position * of_row;
        &self.values[start..][..self.dims[3]]
    }
}

/// A gradient in the order of memory of the tensor it belongs to, so that undoing its views copies nothing.
pub(crate) struct HeadGrad {
    values: Vec<f32>,
    dims: [usize; 4],
    strides: [usize; 4],
}

impl HeadGrad {
    /// Filled with zeros.
    pub(crate) fn like(tensor: &FlexTensor) -> Self {
        let [batch, heads, length, width] = dims(tensor);
        let [_, of_head, of_row, _] = strides::<4>(tensor);
        // Laid out as the input was, so that the way back through `split_heads` is a view again and no copy.
        let strides = if of_head < of_row {
            [length * heads * width, width, heads * width, 1]
        } else {
            [heads * length * width, length * width, width, 1]
        };
        Self {
            values: written(batch * heads * length * width, |values| values.fill(0.0)),
            dims: [batch, heads, length, width],
            strides,
        }
    }

    pub(crate) fn into_tensor(self) -> FlexTensor {
        let strides = self.strides.map(|stride| stride as isize).to_vec();
        let layout = Layout::new(Shape::from(self.dims), strides, 0);
        FlexTensor::new(Bytes::from_elems(self.values), layout, DType::F32)
    }

    pub(crate) fn shared(&mut self) -> SharedHeads<'_> {
        SharedHeads {
            data: self.values.as_mut_ptr(),
            dims: self.dims,
            strides: self.strides,
            memory: PhantomData,
        }
    }
}

/// Heads that tasks write to, every task its own.
pub(crate) struct SharedHeads<'a> {
    data: *mut f32,
    dims: [usize; 4],
    strides: [usize; 4],
    memory: PhantomData<&'a mut [f32]>,
}

// SAFETY: all access goes through `matrix`, whose callers keep to different heads or rows.
unsafe impl Sync for SharedHeads<'_> {}

impl<'a> SharedHeads<'a> {
    /// The heads of `[B, S, H * hd]`.
    pub(crate) fn joined(values: &'a mut [f32], dims: [usize; 4]) -> Self {
        let [batch, heads, length, width] = dims;
        assert_eq!(values.len(), batch * heads * length * width);
        Self {
            data: values.as_mut_ptr(),
            dims,
            strides: [length * heads * width, width, heads * width, 1],
            memory: PhantomData,
        }
    }

    /// The heads of `[B, H, S, hd]`.
    pub(crate) fn separate(values: &'a mut [f32], dims: [usize; 4]) -> Self {
        let [batch, heads, length, width] = dims;
        assert_eq!(values.len(), batch * heads * length * width);
        Self {
            data: values.as_mut_ptr(),
            dims,
            strides: [heads * length * width, length * width, width, 1],
            memory: PhantomData,
        }
    }

    /// The rows `rows` of one head: `[rows, hd]`.
    ///
    /// # Safety
    /// Nobody else has these rows of this head at the same time.
    pub(crate) unsafe fn matrix(
        &self,
        batch: usize,
        head: usize,
        rows: Range<usize>,
    ) -> MatrixMut<'_> {
        let [batches, heads, length, width] = self.dims;
        assert!(batch < batches && head < heads && rows.end <= length && rows.start <= rows.end);
        let [of_batch, of_head, of_row, _] = self.strides;
        let start = batch * of_batch + head * of_head + rows.start * of_row;
        // SAFETY: the block lies within the values, and the caller shares it with nobody.
        unsafe {
            MatrixMut::from_raw(
                self.data.wrapping_add(start),
                [rows.len(), width],
                [of_row, 1],
            )
        }
    }
}
