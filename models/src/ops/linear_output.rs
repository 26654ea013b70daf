//! What linear layers give, with the bias or before it.

use burn::prelude::*;

#[cfg(feature = "cube")]
use super::fused;
use super::linear;

/// A linear layer's output. On GPUs its bias may still be missing: the ops that take such an output add it as they read, which
/// saves a pass over memory.
#[derive(Clone, Debug)]
pub struct LinearOutput<const D: usize> {
    values: Tensor<D>,
    /// `[features]`, of a device with kernels of ours for it, and never trained.
    bias: Option<Tensor<1>>,
}

/// [`linear`], whose bias the next op adds where that is worth while.
///
/// # Shapes
/// As [`linear`].
pub fn linear_output<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> LinearOutput<D> {
    let rows = x.shape().num_elements() / x.dims()[D - 1];
    match bias {
        Some(bias) if is_later(rows, &bias) => LinearOutput {
            values: linear(x, weight, None),
            bias: Some(bias),
        },
        bias => linear(x, weight, bias).into(),
    }
}

/// Products of few rows have a kernel that adds the bias itself.
#[cfg(feature = "cube")]
fn is_later(rows: usize, bias: &Tensor<1>) -> bool {
    rows > retouch_kernels::FEW_ROWS && fused::cube_constant(bias.clone()).is_some()
}

/// The CPU's products begin with the bias.
#[cfg(not(feature = "cube"))]
fn is_later(_: usize, _: &Tensor<1>) -> bool {
    false
}

impl<const D: usize> LinearOutput<D> {
    /// With the bias.
    pub fn into_tensor(self) -> Tensor<D> {
        match self.bias {
            Some(bias) => self.values + bias.unsqueeze(),
            None => self.values,
        }
    }

    /// What [`LinearOutput::apart`] gave.
    pub(super) fn of((values, bias): (Tensor<D>, Option<Tensor<1>>)) -> Self {
        Self { values, bias }
    }

    /// What there is, and the bias if it is missing.
    pub(super) fn apart(self) -> (Tensor<D>, Option<Tensor<1>>) {
        (self.values, self.bias)
    }
}

impl<const D: usize> From<Tensor<D>> for LinearOutput<D> {
    fn from(values: Tensor<D>) -> Self {
        Self { values, bias: None }
    }
}
