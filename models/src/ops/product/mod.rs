//! Matrix products in f32.
//!
//! The right factor is packed into panels, then tiles of the result are computed in registers, rows of tiles in parallel.
//! Every entry of the result is summed in the order of the depth, in blocks of constant size: how rows and columns are
//! shared among threads cannot change a bit of it, and neither can the other rows of a batch.

mod matrix;
mod pack;
mod tile;

use rayon::prelude::*;

use super::scratch;
pub(crate) use matrix::{Matrix, MatrixMut};
pub(crate) use pack::{PANEL, Packed};
pub(crate) use tile::{Steps, Target, multiply_block, tile_height, tile_of_any_size};

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Onto<'a> {
    Zero,
    /// What is there.
    Current,
    /// The same row for every row of the result.
    Row(&'a [f32]),
}

impl<'a> Onto<'a> {
    /// The same for a block that starts at `column`.
    #[inline(always)]
    fn starting_at(self, column: usize) -> Self {
        match self {
            Self::Row(row) => Self::Row(&row[column..]),
            other => other,
        }
    }
}

/// Multiply-adds below which waking another thread costs more than it saves.
const PARALLEL_MIN: usize = 1 << 19;
/// Multiply-adds of one task.
const TASK_WORK: usize = 1 << 20;
/// Largest packed block, in numbers.
const PACKED_MAX: usize = 1 << 20;
/// Fewer rows than this are computed as columns: packing the left factor is then less work.
const FEW_ROWS: usize = 32;

/// `c = onto + alpha a b`.
///
/// # Shapes
/// - a: `[m, k]`, b: `[k, n]`, c: `[m, n]`, with any strides
pub(crate) fn multiply(mut c: MatrixMut, a: Matrix, b: Matrix, alpha: f32, onto: Onto) {
    assert!(a.columns == b.rows && c.rows == a.rows && c.columns == b.columns);
    if c.rows > FEW_ROWS || c.rows >= c.columns {
        return multiply_rows(c, a, b, alpha, onto);
    }
    let onto = match onto {
        Onto::Row(_) => {
            c.fill(onto);
            Onto::Current
        }
        onto => onto,
    };
    multiply_rows(c.transposed(), b.transposed(), a.transposed(), alpha, onto);
}

fn multiply_rows(c: MatrixMut, a: Matrix, b: Matrix, alpha: f32, onto: Onto) {
    let width = (PACKED_MAX / b.rows.max(1)).max(PANEL) / PANEL * PANEL;
    let blocks = c.transposed().row_blocks(width);
    for (index, block) in blocks.into_iter().enumerate() {
        let columns = index * width..index * width + block.rows;
        let onto = onto.starting_at(columns.start);
        multiply_columns(block.transposed(), a, b.column_range(columns), alpha, onto);
    }
}

/// A block of columns that is packed as a whole.
fn multiply_columns(c: MatrixMut, a: Matrix, b: Matrix, alpha: f32, onto: Onto) {
    let work_per_row = b.rows * b.columns;
    scratch::with(Packed::room(b.rows, b.columns), |room| {
        if a.rows * work_per_row < PARALLEL_MIN {
            multiply_block(c, a, Packed::new(b, room), alpha, onto);
            return;
        }
        let packed = Packed::parallel(b, room);
        let height = (TASK_WORK / work_per_row.max(1)).clamp(1, a.rows);
        let height = height.next_multiple_of(48);
        let tasks = c.row_blocks(height);
        tasks.into_par_iter().enumerate().for_each(|(index, c)| {
            let rows = index * height..index * height + c.rows;
            multiply_block(c, a.row_range(rows), packed, alpha, onto);
        });
    });
}
