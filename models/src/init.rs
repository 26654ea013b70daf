//! How new parameters start.

use std::cell::Cell;

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Tensor};

use crate::noise;

/// Where new parameters live and what they start from.
///
/// Parameters are made lazily: one that is loaded from a checkpoint is never initialised. The
/// n-th parameter of a module depends on the seed and n alone, so equal seeds give equal modules.
pub struct Init {
    device: Device,
    seed: u64,
    made: Cell<u64>,
}

impl Init {
    /// Parameters on `device`, drawn from `seed`.
    pub fn new(seed: u64, device: &Device) -> Self {
        Self {
            device: device.clone(),
            seed,
            made: Cell::new(0),
        }
    }

    /// For modules whose parameters are never made, only asked for their names and shapes.
    pub fn unused() -> Self {
        Self::new(0, &Device::flex())
    }

    /// The device of the parameters.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All zeros.
    pub fn zeros<const D: usize>(&self, shape: [usize; D]) -> Param<Tensor<D>> {
        self.lazy(shape, move |device| Tensor::zeros(shape, device))
    }

    /// All ones.
    pub fn ones<const D: usize>(&self, shape: [usize; D]) -> Param<Tensor<D>> {
        self.lazy(shape, move |device| Tensor::ones(shape, device))
    }

    /// Independent Gaussians of the given standard deviation.
    pub fn normal<const D: usize>(&self, shape: [usize; D], std: f64) -> Param<Tensor<D>> {
        let seed = self.next_seed();
        self.lazy(shape, move |device| {
            noise::normal(seed, shape, device).mul_scalar(std)
        })
    }

    /// Gaussians with the variance of torch's default for linear and convolution weights,
    /// 1 / (3 fan_in); the fan-in is the product of all dimensions but the first.
    pub fn fan_in<const D: usize>(&self, shape: [usize; D]) -> Param<Tensor<D>> {
        let fan_in: usize = shape[1..].iter().product();
        self.normal(shape, (3.0 * fan_in as f64).sqrt().recip())
    }

    fn next_seed(&self) -> u64 {
        let n = self.made.replace(self.made.get() + 1);
        // Odd multiplier: distinct n give distinct seeds.
        self.seed ^ n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn lazy<const D: usize>(
        &self,
        shape: [usize; D],
        make: impl FnOnce(&Device) -> Tensor<D> + Send + Sync + 'static,
    ) -> Param<Tensor<D>> {
        Param::uninitialized(
            ParamId::new(),
            move |device, require_grad| make(device).set_require_grad(require_grad),
            self.device.clone(),
            true,
            shape.into(),
        )
    }
}
