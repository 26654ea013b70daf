//! The register tile: a few rows times two vectors of the result stay in registers while the depth passes by.

#![allow(
    clippy::needless_range_loop,
    reason = "constant bounds let the compiler unroll the loops and keep the tile in registers"
)]

use super::Onto;
use super::matrix::{Matrix, MatrixMut};
use super::pack::{PANEL, Packed};
use crate::ops::simd::{Simd, simd_fn};

/// Depth of a block: a packed panel of it (32 KiB) stays in the first cache while all rows use it.
const DEPTH_BLOCK: usize = 256;

simd_fn! {
    /// `c = onto + alpha a b`, on this thread.
    pub(crate) fn multiply_block(c: MatrixMut, a: Matrix, b: Packed, alpha: f32, onto: Onto) = block;
}

#[inline(always)]
fn block<S: Simd>(s: S, mut c: MatrixMut, a: Matrix, b: Packed, alpha: f32, onto: Onto) {
    assert!(a.columns == b.depth && c.rows == a.rows && c.columns == b.columns);
    if b.depth == 0 {
        return c.fill(onto);
    }
    for start in (0..b.depth).step_by(DEPTH_BLOCK) {
        let depth = DEPTH_BLOCK.min(b.depth - start);
        let onto = if start == 0 { onto } else { Onto::Current };
        for column in (0..b.columns).step_by(2 * S::LANES) {
            let panel = b.at(column / PANEL, start).wrapping_add(column % PANEL);
            let width = (2 * S::LANES).min(b.columns - column);
            let mut row = 0;
            while row < a.rows {
                let rows = tile_height::<S>(a.rows - row);
                let steps = Steps {
                    a: |i: usize| a.at(row + i, start),
                    a_step: a.column_stride,
                    b: |step: usize| panel.wrapping_add(step.wrapping_mul(PANEL)),
                    depth,
                };
                let to = Target {
                    data: c.at(row, column),
                    rows,
                    width,
                    row_stride: c.row_stride,
                    column_stride: c.column_stride,
                    alpha,
                    onto: onto.starting_at(column),
                };
                // SAFETY: the tile lies within `c`, whose rows and depth are those of `a` and `b`.
                unsafe { tile_of_any_size(s, &steps, &to) };
                row += rows;
            }
        }
    }
}

/// Where a tile's factors come from, step by step along the depth.
pub(crate) struct Steps<A, B> {
    /// Where row `i` of the left factor starts.
    pub(crate) a: A,
    /// Distance from one step to the next in a row of the left factor.
    pub(crate) a_step: usize,
    /// Where the right factor's numbers of a step are, next to one another.
    pub(crate) b: B,
    pub(crate) depth: usize,
}

/// Where a tile's result goes.
pub(crate) struct Target<'a> {
    pub(crate) data: *mut f32,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
    pub(crate) alpha: f32,
    pub(crate) onto: Onto<'a>,
}

/// Rows of the next tile when `left` are left.
#[inline(always)]
pub(crate) fn tile_height<S: Simd>(left: usize) -> usize {
    left.min(S::TILE_ROWS)
}

/// # Safety
/// For every step below `depth`: `a(i)` for all rows and both vectors at `b` can be read;
/// the target can be written. Loads of `b` read whole vectors, also where `width` ends within one.
#[inline(always)]
pub(crate) unsafe fn tile_of_any_size<S, A, B>(s: S, steps: &Steps<A, B>, to: &Target)
where
    S: Simd,
    A: Fn(usize) -> *const f32,
    B: Fn(usize) -> *const f32,
{
    // SAFETY: passed on.
    unsafe {
        if to.width > S::LANES {
            tile_of_any_height::<S, A, B, 2>(s, steps, to)
        } else {
            tile_of_any_height::<S, A, B, 1>(s, steps, to)
        }
    }
}

#[inline(always)]
unsafe fn tile_of_any_height<S, A, B, const VECTORS: usize>(s: S, steps: &Steps<A, B>, to: &Target)
where
    S: Simd,
    A: Fn(usize) -> *const f32,
    B: Fn(usize) -> *const f32,
{
    // SAFETY: passed on.
    unsafe {
        match to.rows {
            0..=4 => tile::<S, A, B, 4, VECTORS>(s, steps, to),
            5..=6 => tile::<S, A, B, 6, VECTORS>(s, steps, to),
            7..=8 => tile::<S, A, B, 8, VECTORS>(s, steps, to),
            _ => tile::<S, A, B, 12, VECTORS>(s, steps, to),
        }
    }
}

/// Computes `ROWS` rows, of which those beyond `to.rows` repeat the last one and are dropped.
#[inline(always)]
unsafe fn tile<S, A, B, const ROWS: usize, const VECTORS: usize>(
    s: S,
    steps: &Steps<A, B>,
    to: &Target,
) where
    S: Simd,
    A: Fn(usize) -> *const f32,
    B: Fn(usize) -> *const f32,
{
    let rows: [*const f32; ROWS] = std::array::from_fn(|i| (steps.a)(i.min(to.rows - 1)));
    let mut sums = [[s.splat(0.0); VECTORS]; ROWS];
    let mut offset = 0usize;
    for step in 0..steps.depth {
        let from = (steps.b)(step);
        let b: [S::F32; VECTORS] = std::array::from_fn(|v| {
            // SAFETY: the caller lends whole vectors at every step.
            unsafe { s.load_ptr(from.wrapping_add(v * S::LANES)) }
        });
        for i in 0..ROWS {
            // SAFETY: every row has `depth` steps.
            let a = s.splat(unsafe { *rows[i].wrapping_add(offset) });
            for v in 0..VECTORS {
                sums[i][v] = s.mul_add(a, b[v], sums[i][v]);
            }
        }
        offset = offset.wrapping_add(steps.a_step);
    }
    let whole = to.rows == ROWS && to.width == VECTORS * S::LANES && to.column_stride == 1;
    // SAFETY: the tile lies within the target.
    unsafe {
        match (whole, to.onto) {
            (true, Onto::Zero) => store(s, &sums, to, |_, _, value| value),
            (true, Onto::Current) => {
                store(s, &sums, to, |at, _, value| s.add(s.load_ptr(at), value))
            }
            (true, Onto::Row(row)) => {
                assert!(row.len() >= VECTORS * S::LANES);
                store(s, &sums, to, |_, column, value| {
                    s.add(s.load_ptr(row.as_ptr().wrapping_add(column)), value)
                })
            }
            (false, _) => {
                let mut rows = [[0.0; PANEL]; ROWS];
                for i in 0..ROWS {
                    for v in 0..VECTORS {
                        s.store_ptr(rows[i].as_mut_ptr().add(v * S::LANES), sums[i][v]);
                    }
                }
                store_part(&rows, to);
            }
        }
    }
}

#[inline(always)]
unsafe fn store<S: Simd, const ROWS: usize, const VECTORS: usize>(
    s: S,
    sums: &[[S::F32; VECTORS]; ROWS],
    to: &Target,
    combine: impl Fn(*mut f32, usize, S::F32) -> S::F32,
) {
    let alpha = s.splat(to.alpha);
    for i in 0..ROWS {
        let row = to.data.wrapping_add(i.wrapping_mul(to.row_stride));
        for v in 0..VECTORS {
            let at = row.wrapping_add(v * S::LANES);
            let value = combine(at, v * S::LANES, s.mul(alpha, sums[i][v]));
            // SAFETY: the caller lends the whole tile.
            unsafe { s.store_ptr(at, value) };
        }
    }
}

/// A tile at the edge of the result, or of a result whose rows are not contiguous.
#[inline(never)]
unsafe fn store_part(rows: &[[f32; PANEL]], to: &Target) {
    for (i, row) in rows.iter().enumerate().take(to.rows) {
        let start = to.data.wrapping_add(i * to.row_stride);
        for (j, value) in row.iter().enumerate().take(to.width) {
            let entry = start.wrapping_add(j * to.column_stride);
            // SAFETY: the caller lends `rows` times `width` entries.
            unsafe {
                let base = match to.onto {
                    Onto::Zero => 0.0,
                    Onto::Current => *entry,
                    Onto::Row(row) => row[j],
                };
                *entry = base + to.alpha * value;
            }
        }
    }
}
