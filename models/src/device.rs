//! Devices and float types by name.

use burn::tensor::{DType, Device};
use retouch_settings::Dtype;

/// A device that is unknown, or not in this build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The name is not a device's.
    #[error("unknown device {0:?}, expected \"cpu\" or \"cuda:N\"")]
    Unknown(String),
    /// The program was built without CUDA.
    #[error("device {0:?} needs a build with the cuda feature (cargo build --features cuda)")]
    NoCuda(String),
    /// The driver is not installed.
    #[cfg(feature = "cuda")]
    #[error("device {0:?} needs NVIDIA's driver: libcuda.so.1 is not on this machine")]
    NoDriver(String),
    /// The driver does not work.
    #[cfg(feature = "cuda")]
    #[error("device {name:?} is out of reach: {reason}")]
    Driver {
        /// The device asked for.
        name: String,
        /// What the driver says.
        reason: String,
    },
    /// There are fewer devices.
    #[cfg(feature = "cuda")]
    #[error("there is no device {name:?}: this machine has {count}, counted from cuda:0")]
    Absent {
        /// The device asked for.
        name: String,
        /// How many there are.
        count: i32,
    },
}

/// The device called `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// If the name is none of these, or the build has no such device.
pub fn parse(name: &str) -> Result<Device, DeviceError> {
    if name == "cpu" {
        return Ok(Device::flex());
    }
    let index = cuda_index(name).ok_or_else(|| DeviceError::Unknown(name.to_owned()))?;
    cuda(name, index)
}

/// The float type of tensors of a setting.
pub fn float_type(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
    }
}

/// The number of the GPU called `cuda` or `cuda:N`; none for other names.
pub fn cuda_index(name: &str) -> Option<usize> {
    match name.strip_prefix("cuda")? {
        "" => Some(0),
        rest => rest.strip_prefix(':')?.parse().ok(),
    }
}

#[cfg(feature = "cuda")]
fn cuda(name: &str, index: usize) -> Result<Device, DeviceError> {
    // SAFETY: the driver's initializers have no preconditions.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(DeviceError::NoDriver(name.to_owned()));
    }
    let count = cudarc::driver::CudaContext::device_count();
    let count = count.map_err(|error| DeviceError::Driver {
        name: name.to_owned(),
        reason: error.to_string(),
    })?;
    if index >= count.max(0) as usize {
        return Err(DeviceError::Absent {
            name: name.to_owned(),
            count,
        });
    }
    Ok(Device::cuda(index))
}

#[cfg(not(feature = "cuda"))]
fn cuda(name: &str, _index: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NoCuda(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_devices_or_clear_errors() {
        assert_eq!(parse("cpu").unwrap(), Device::flex());
        for name in ["gpu", "cuda:x", "cuda0", ""] {
            assert_eq!(parse(name).unwrap_err(), DeviceError::Unknown(name.into()));
        }
        #[cfg(not(feature = "cuda"))]
        assert_eq!(
            parse("cuda:1").unwrap_err(),
            DeviceError::NoCuda("cuda:1".into())
        );
    }
}
