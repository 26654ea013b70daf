//! Strided views of matrices.

use std::marker::PhantomData;
use std::ops::Range;

use super::Onto;

/// A matrix to read: entry `(i, j)` is at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    data: *const f32,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
    memory: PhantomData<&'a [f32]>,
}

// SAFETY: a shared borrow of numbers.
unsafe impl Send for Matrix<'_> {}
// SAFETY: as above.
unsafe impl Sync for Matrix<'_> {}

impl<'a> Matrix<'a> {
    /// Contiguous rows.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, [rows, columns], [columns, 1])
    }

    pub(crate) fn strided(
        data: &'a [f32],
        [rows, columns]: [usize; 2],
        [row_stride, column_stride]: [usize; 2],
    ) -> Self {
        assert!(extent([rows, columns], [row_stride, column_stride]) <= data.len());
        Self {
            data: data.as_ptr(),
            rows,
            columns,
            row_stride,
            column_stride,
            memory: PhantomData,
        }
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    pub(crate) fn row_range(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.rows && range.start <= range.end);
        Self {
            // SAFETY: the range lies within the matrix.
            data: unsafe { self.data.add(range.start * self.row_stride) },
            rows: range.len(),
            ..self
        }
    }

    pub(crate) fn column_range(self, range: Range<usize>) -> Self {
        self.transposed().row_range(range).transposed()
    }

    /// Where entry `(row, column)` is.
    #[inline(always)]
    pub(crate) fn at(&self, row: usize, column: usize) -> *const f32 {
        debug_assert!(row < self.rows && column < self.columns);
        self.data
            .wrapping_add(row * self.row_stride + column * self.column_stride)
    }
}

/// A matrix to write, with strides as [`Matrix`] has them.
#[derive(Debug)]
pub(crate) struct MatrixMut<'a> {
    data: *mut f32,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
    memory: PhantomData<&'a mut [f32]>,
}

// SAFETY: an exclusive borrow of numbers.
unsafe impl Send for MatrixMut<'_> {}

impl<'a> MatrixMut<'a> {
    /// Contiguous rows.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, [rows, columns], [columns, 1])
    }

    pub(crate) fn strided(
        data: &'a mut [f32],
        [rows, columns]: [usize; 2],
        [row_stride, column_stride]: [usize; 2],
    ) -> Self {
        assert!(extent([rows, columns], [row_stride, column_stride]) <= data.len());
        // SAFETY: the slice covers the matrix and is borrowed exclusively.
        unsafe {
            Self::from_raw(
                data.as_mut_ptr(),
                [rows, columns],
                [row_stride, column_stride],
            )
        }
    }

    /// # Safety
    /// Every entry lies in memory that nobody else reads or writes for `'a`.
    pub(crate) unsafe fn from_raw(
        data: *mut f32,
        [rows, columns]: [usize; 2],
        [row_stride, column_stride]: [usize; 2],
    ) -> Self {
        Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride,
            memory: PhantomData,
        }
    }

    pub(crate) fn reborrow(&mut self) -> MatrixMut<'_> {
        MatrixMut {
            memory: PhantomData,
            ..*self
        }
    }

    /// A row of a matrix whose rows are contiguous.
    pub(crate) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(self.column_stride == 1 && row < self.rows);
        // SAFETY: the row lies within the matrix and is contiguous.
        unsafe { std::slice::from_raw_parts_mut(self.at(row, 0), self.columns) }
    }

    /// The first column becomes `values`.
    pub(crate) fn fill_column(&mut self, values: &[f32]) {
        for (i, value) in values.iter().enumerate().take(self.rows) {
            // SAFETY: the entry lies within the matrix.
            unsafe { *self.at(i, 0) = *value };
        }
    }

    /// Becomes what a product is to be added to.
    pub(crate) fn fill(&mut self, onto: Onto) {
        for i in 0..self.rows {
            for j in 0..self.columns {
                let value = match onto {
                    Onto::Zero => 0.0,
                    Onto::Row(row) => row[j],
                    Onto::Current => return,
                };
                // SAFETY: the entry lies within the matrix.
                unsafe { *self.at(i, j) = value };
            }
        }
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Blocks of `height` rows, the last one may be shorter.
    pub(crate) fn row_blocks(self, height: usize) -> Vec<MatrixMut<'a>> {
        let blocks = (0..self.rows).step_by(height);
        blocks
            .map(|start| Self {
                data: self.data.wrapping_add(start * self.row_stride),
                rows: height.min(self.rows - start),
                ..self
            })
            .collect()
    }

    #[inline(always)]
    pub(crate) fn at(&mut self, row: usize, column: usize) -> *mut f32 {
        debug_assert!(row < self.rows && column < self.columns);
        self.data
            .wrapping_add(row * self.row_stride + column * self.column_stride)
    }
}

/// How many numbers of memory a matrix spans.
fn extent([rows, columns]: [usize; 2], [row_stride, column_stride]: [usize; 2]) -> usize {
    if rows == 0 || columns == 0 {
        return 0;
    }
    (rows - 1) * row_stride + (columns - 1) * column_stride + 1
}
