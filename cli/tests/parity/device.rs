use anyhow::Context;
use burn::tensor::{DType, Device};

use crate::case::Bound;

/// TF32 has 10 bits of a factor's fraction, of f32's 23. Rounding all factors to it in the reference packages moves the
/// models' outputs by 4e-4 to 1.6e-3 and the gradients of `nft_step` by up to 3.4e-3: three times the worst.
const TF32_TOLERANCE: f64 = 1e-2;

/// Where cases are computed.
pub(crate) struct TestDevice {
    pub(crate) name: String,
    pub(crate) device: Device,
}

impl TestDevice {
    /// `$RETOUCH_TEST_DEVICE`, by default the CPU.
    pub(crate) fn from_environment() -> anyhow::Result<Self> {
        let name = std::env::var("RETOUCH_TEST_DEVICE");
        let name = name.as_deref().unwrap_or("cpu");
        Self::named(name).context("RETOUCH_TEST_DEVICE")
    }

    pub(crate) fn named(name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            device: retouch_models::device::parse(name)?,
        })
    }

    /// WGSL, for example, has no bf16.
    pub(crate) fn computes_in(&self, dtype: DType) -> bool {
        self.device.supports_dtype(dtype)
    }

    /// How close a case has to be here that bounds itself by `own`.
    pub(crate) fn bound(&self, own: Bound) -> Bound {
        match own {
            Bound::Difference(tolerance) if self.has_tf32() => {
                Bound::Difference(tolerance.max(TF32_TOLERANCE))
            }
            own => own,
        }
    }

    /// On CUDA the backend's products of f32 matrices may run on tensor cores, as TF32.
    fn has_tf32(&self) -> bool {
        self.name.starts_with("cuda")
    }
}
