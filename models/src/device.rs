//! Devices and float types by name.

use burn::tensor::{DType, Device};

/// A device that is unknown, or not in this build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The name is not a device's.
    #[error("unknown device {0:?}, expected \"cpu\" or \"cuda:N\"")]
    Unknown(String),
    /// The program was built without CUDA.
    #[error("device {0:?} needs a build with the cuda feature (cargo build --features cuda)")]
    NoCuda(String),
}

/// The device called `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// If the name is none of these, or the build has no such device.
pub fn parse(name: &str) -> Result<Device, DeviceError> {
    if name == "cpu" {
        return Ok(Device::flex());
    }
    let unknown = || DeviceError::Unknown(name.to_owned());
    let index = match name.strip_prefix("cuda").ok_or_else(unknown)? {
        "" => 0,
        rest => rest
            .strip_prefix(':')
            .and_then(|n| n.parse().ok())
            .ok_or_else(unknown)?,
    };
    cuda(name, index)
}

/// The float type called `f32`, `bf16` or `f16`, if it is one of these.
pub fn float_type(name: &str) -> Option<DType> {
    Some(match name {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        "f16" => DType::F16,
        _ => return None,
    })
}

#[cfg(feature = "cuda")]
fn cuda(_name: &str, index: usize) -> Result<Device, DeviceError> {
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
