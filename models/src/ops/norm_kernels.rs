//! `y = normal(x) * factor + offset` row by row, where rows of one batch row share a factor and an offset.

use super::simd::{Simd, simd_fn};
use super::values::{block_rows, for_row_blocks, sum_blocks, written};

/// What makes a row normal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Mean 0 and variance 1.
    Layer,
    /// Mean square 1.
    RootMeanSquare,
}

/// Rows to normalise.
pub(crate) struct Rows<'a> {
    pub(crate) kind: Kind,
    pub(crate) eps: f32,
    pub(crate) x: &'a [f32],
    pub(crate) width: usize,
    /// So many rows, one after another, share a factor.
    pub(crate) rows_per_factor: usize,
    /// One row for every `rows_per_factor` rows of x.
    pub(crate) factors: &'a [f32],
}

impl Rows<'_> {
    fn factor(&self, row: usize) -> &[f32] {
        &self.factors[row / self.rows_per_factor * self.width..][..self.width]
    }

    fn row<'b>(&self, values: &'b [f32], row: usize) -> &'b [f32] {
        &values[row * self.width..][..self.width]
    }

    fn each(&self, kernel: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
        written(self.x.len(), |out| {
            for_row_blocks(out, self.width, block_rows(self.width), kernel)
        })
    }

    /// For every factor, the sum over its rows of what `row` adds for a row.
    fn sum_per_factor(&self, row: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
        let factors = self.factors.len() / self.width.max(1);
        let mut sums = Vec::with_capacity(self.factors.len());
        for factor in 0..factors {
            let first = factor * self.rows_per_factor;
            sums.extend(sum_blocks(
                self.rows_per_factor,
                self.width,
                |rows, sums| rows.for_each(|i| row(first + i, sums)),
            ));
        }
        sums
    }
}

pub(crate) fn forward(rows: &Rows, offsets: Option<&[f32]>) -> Vec<f32> {
    rows.each(|first, out| match offsets {
        Some(offsets) => forward_block(rows, offsets, first, out),
        None => forward_block_without_offset(rows, first, out),
    })
}

pub(crate) fn input_grad(rows: &Rows, grad: &[f32]) -> Vec<f32> {
    rows.each(|first, out| input_grad_block(rows, grad, first, out))
}

pub(crate) fn factor_grads(rows: &Rows, grad: &[f32]) -> Vec<f32> {
    rows.sum_per_factor(|row, sums| {
        add_normal_products(rows, rows.row(rows.x, row), rows.row(grad, row), sums)
    })
}

pub(crate) fn offset_grads(rows: &Rows, grad: &[f32]) -> Vec<f32> {
    rows.sum_per_factor(|row, sums| add_row(rows.row(grad, row), sums))
}

simd_fn! {
    fn forward_block(rows: &Rows, offsets: &[f32], first: usize, out: &mut [f32]) = forward_kernel;
    fn forward_block_without_offset(rows: &Rows, first: usize, out: &mut [f32]) = forward_kernel_without_offset;
    fn input_grad_block(rows: &Rows, grad: &[f32], first: usize, out: &mut [f32]) = input_grad_kernel;
    fn add_normal_products(rows: &Rows, x: &[f32], grad: &[f32], sums: &mut [f32]) = add_normal_products_kernel;
    /// `sums += row`.
    pub(crate) fn add_row(row: &[f32], sums: &mut [f32]) = add_row_kernel;
}

/// Mean and one over the deviation; the mean counts as zero for [`Kind::RootMeanSquare`].
#[inline(always)]
fn statistics<S: Simd>(s: S, rows: &Rows, x: &[f32]) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = match rows.kind {
        Kind::Layer => s.zip_sum([x], |[x]| x) / count,
        Kind::RootMeanSquare => 0.0,
    };
    let variance = s.centered_squares(x, mean) / count;
    (mean, 1.0 / (variance + rows.eps).sqrt())
}

#[inline(always)]
fn forward_kernel<S: Simd>(s: S, rows: &Rows, offsets: &[f32], first: usize, out: &mut [f32]) {
    for (i, out) in out.chunks_exact_mut(rows.width).enumerate() {
        let row = first + i;
        let x = rows.row(rows.x, row);
        let offset = rows.row(offsets, row / rows.rows_per_factor);
        let (mean, scale) = statistics(s, rows, x);
        let (mean, scale) = (s.splat(mean), s.splat(scale));
        s.zip_map([x, rows.factor(row), offset], out, |[x, factor, offset]| {
            s.mul_add(s.mul(s.sub(x, mean), scale), factor, offset)
        });
    }
}

#[inline(always)]
fn forward_kernel_without_offset<S: Simd>(s: S, rows: &Rows, first: usize, out: &mut [f32]) {
    for (i, out) in out.chunks_exact_mut(rows.width).enumerate() {
        let x = rows.row(rows.x, first + i);
        let (mean, scale) = statistics(s, rows, x);
        let (mean, scale) = (s.splat(mean), s.splat(scale));
        s.zip_map([x, rows.factor(first + i)], out, |[x, factor]| {
            s.mul(s.mul(s.sub(x, mean), scale), factor)
        });
    }
}

/// With `n` the normal row and `d = grad * factor`: `(d - mean(d) - n mean(d n)) / deviation`, without the mean for RMS.
#[inline(always)]
fn input_grad_kernel<S: Simd>(s: S, rows: &Rows, grad: &[f32], first: usize, out: &mut [f32]) {
    let count = rows.width as f32;
    for (i, out) in out.chunks_exact_mut(rows.width).enumerate() {
        let (x, grad) = (rows.row(rows.x, first + i), rows.row(grad, first + i));
        let (mean, scale) = statistics(s, rows, x);
        s.zip_map([grad, rows.factor(first + i)], out, |[grad, factor]| {
            s.mul(grad, factor)
        });
        let sum = s.zip_sum([out], |[d]| d);
        let along_x = s.zip_sum([out, x], |[d, x]| s.mul(d, x));
        let along = (along_x - mean * sum) * scale / count;
        let level = match rows.kind {
            Kind::Layer => sum / count,
            Kind::RootMeanSquare => 0.0,
        };
        let (mean, scale) = (s.splat(mean), s.splat(scale));
        let (along, level) = (s.splat(along), s.splat(level));
        s.accumulate([x], out, |[x], d| {
            let normal = s.mul(s.sub(x, mean), scale);
            let rest = s.sub(s.sub(d, level), s.mul(normal, along));
            s.mul(scale, rest)
        });
    }
}

#[inline(always)]
fn add_normal_products_kernel<S: Simd>(
    s: S,
    rows: &Rows,
    x: &[f32],
    grad: &[f32],
    sums: &mut [f32],
) {
    let (mean, scale) = statistics(s, rows, x);
    let (mean, scale) = (s.splat(mean), s.splat(scale));
    s.accumulate([x, grad], sums, |[x, grad], sum| {
        s.mul_add(s.mul(s.sub(x, mean), scale), grad, sum)
    });
}

#[inline(always)]
fn add_row_kernel<S: Simd>(s: S, row: &[f32], sums: &mut [f32]) {
    s.accumulate([row], sums, |[row], sum| s.add(row, sum));
}
