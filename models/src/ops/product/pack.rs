//! The right-hand matrix of a product, rearranged for the register tile.

use std::ops::Range;

use rayon::prelude::*;

use super::matrix::Matrix;

/// Columns of a panel: two vectors of the widest instruction set.
pub(crate) const PANEL: usize = 32;

/// Below this many numbers, packing on one thread is faster than waking others.
const PARALLEL_PACKING_MIN: usize = 1 << 16;

/// A matrix in panels of [`PANEL`] columns; within a panel, one row after another, the last panel padded with zeros.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a> {
    data: &'a [f32],
    pub(crate) depth: usize,
    pub(crate) columns: usize,
    panel_stride: usize,
}

impl<'a> Packed<'a> {
    /// How much room [`Packed::new`] needs.
    pub(crate) fn room(depth: usize, columns: usize) -> usize {
        depth * columns.next_multiple_of(PANEL)
    }

    /// Packs `b` into `room`, on this thread.
    pub(crate) fn new(b: Matrix, room: &'a mut [f32]) -> Self {
        let room = &mut room[..Self::room(b.rows, b.columns)];
        for (index, panel) in room.chunks_exact_mut((b.rows * PANEL).max(1)).enumerate() {
            pack_panel(b, index, panel);
        }
        Self::of(b, room)
    }

    /// Packs `b` into `room`, on all threads if it is worth it.
    pub(crate) fn parallel(b: Matrix, room: &'a mut [f32]) -> Self {
        if b.rows * b.columns < PARALLEL_PACKING_MIN {
            return Self::new(b, room);
        }
        let room = &mut room[..Self::room(b.rows, b.columns)];
        room.par_chunks_exact_mut(b.rows * PANEL)
            .enumerate()
            .for_each(|(index, panel)| pack_panel(b, index, panel));
        Self::of(b, room)
    }

    fn of(b: Matrix, data: &'a [f32]) -> Self {
        Self {
            data,
            depth: b.rows,
            columns: b.columns,
            panel_stride: b.rows * PANEL,
        }
    }

    /// Packs the blocks of rows that `block` gives for the row they start at; rows of no block are zeros.
    pub(crate) fn of_blocks<'b>(
        room: &'a mut [f32],
        depth: usize,
        columns: usize,
        blocks: impl Iterator<Item = (usize, Matrix<'b>)> + Clone,
    ) -> Self {
        let room = &mut room[..Self::room(depth, columns)];
        room.fill(0.0);
        for (index, panel) in room.chunks_exact_mut((depth * PANEL).max(1)).enumerate() {
            for (row, block) in blocks.clone() {
                pack_panel(
                    block,
                    index,
                    &mut panel[row * PANEL..][..block.rows * PANEL],
                );
            }
        }
        Self {
            data: room,
            depth,
            columns,
            panel_stride: depth * PANEL,
        }
    }

    /// Some of the rows.
    pub(crate) fn row_range(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.depth);
        Self {
            data: &self.data[range.start * PANEL..],
            depth: range.len(),
            ..self
        }
    }

    /// Some of the panels, padding included: `range` starts and ends with a panel.
    pub(crate) fn panel_range(self, range: Range<usize>) -> Self {
        assert!(range.start.is_multiple_of(PANEL) && range.end.is_multiple_of(PANEL));
        assert!(range.end <= self.columns.next_multiple_of(PANEL));
        Self {
            data: &self.data[range.start / PANEL * self.panel_stride..],
            columns: range.len(),
            ..self
        }
    }

    /// Where panel `panel` has row `row`; rows follow one another at a distance of [`PANEL`].
    #[inline(always)]
    pub(crate) fn at(&self, panel: usize, row: usize) -> *const f32 {
        let offset = panel * self.panel_stride + row * PANEL;
        debug_assert!(offset < self.data.len());
        self.data.as_ptr().wrapping_add(offset)
    }
}

fn pack_panel(b: Matrix, index: usize, panel: &mut [f32]) {
    let start = index * PANEL;
    let b = b.column_range(start..b.columns.min(start + PANEL));
    if b.columns < PANEL {
        panel.fill(0.0);
    }
    if b.column_stride == 1 {
        pack_rows(b, panel);
    } else {
        pack_columns(b, panel);
    }
}

fn pack_rows(b: Matrix, panel: &mut [f32]) {
    for (row, packed) in panel.chunks_exact_mut(PANEL).enumerate() {
        // SAFETY: `columns` numbers follow one another in every row of `b`.
        let numbers = unsafe { std::slice::from_raw_parts(b.at(row, 0), b.columns) };
        packed[..b.columns].copy_from_slice(numbers);
    }
}

/// Side of the square blocks of a transposing copy.
const SQUARE: usize = 4;

fn pack_columns(b: Matrix, panel: &mut [f32]) {
    let whole_rows = b.rows / SQUARE * SQUARE;
    let whole_columns = if b.row_stride == 1 {
        b.columns / SQUARE * SQUARE
    } else {
        0
    };
    for row in (0..whole_rows).step_by(SQUARE) {
        for column in (0..whole_columns).step_by(SQUARE) {
            let columns: [*const f32; SQUARE] = std::array::from_fn(|j| b.at(row, column + j));
            let packed = &mut panel[row * PANEL + column..][..3 * PANEL + SQUARE];
            // SAFETY: four numbers follow one another in each of these columns.
            unsafe { transpose_square(columns, packed) };
        }
    }
    copy_entries(b, 0..whole_rows, whole_columns..b.columns, panel);
    copy_entries(b, whole_rows..b.rows, 0..b.columns, panel);
}

fn copy_entries(b: Matrix, rows: Range<usize>, columns: Range<usize>, panel: &mut [f32]) {
    for row in rows {
        for column in columns.clone() {
            // SAFETY: the entry lies within `b`.
            panel[row * PANEL + column] = unsafe { *b.at(row, column) };
        }
    }
}

/// Four numbers of each of four columns become four rows, [`PANEL`] apart.
///
/// # Safety
/// Four numbers can be read at each of `columns`.
#[cfg(target_arch = "x86_64")]
unsafe fn transpose_square(columns: [*const f32; SQUARE], packed: &mut [f32]) {
    use std::arch::x86_64::*;
    assert!(packed.len() >= 3 * PANEL + SQUARE);
    // SAFETY: every x86-64 CPU has SSE; the reads are the caller's, the writes were checked.
    unsafe {
        let [mut a, mut b, mut c, mut d] = columns.map(|column| _mm_loadu_ps(column));
        _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
        for (i, row) in [a, b, c, d].into_iter().enumerate() {
            _mm_storeu_ps(packed.as_mut_ptr().add(i * PANEL), row);
        }
    }
}

/// Four numbers of each of four columns become four rows, [`PANEL`] apart.
///
/// # Safety
/// Four numbers can be read at each of `columns`.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn transpose_square(columns: [*const f32; SQUARE], packed: &mut [f32]) {
    for (j, column) in columns.into_iter().enumerate() {
        for i in 0..SQUARE {
            // SAFETY: the caller lends four numbers.
            packed[i * PANEL + j] = unsafe { *column.add(i) };
        }
    }
}
