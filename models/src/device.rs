//! Devices by name, and what this machine has of them.
//!
//! [`parse`] opens a device and finds beforehand what would otherwise end in a panic of the backend's: a driver that is
//! missing or too old, a card that is not there, [`libdevice`] missing. [`cards`](mod@cards) asks the driver about cards
//! without opening them, and [`cache`] is where compiled and tuned kernels stay.

pub mod cache;
pub mod cards;
pub mod libdevice;
#[cfg(feature = "cuda")]
pub mod memory;

use burn::tensor::{DType, Device};
use retouch_settings::{DeviceName, Dtype, UnknownDevice};

use self::cards::DriverError;
use self::libdevice::NoLibdevice;

/// A device that is unknown, not in this build, or not usable on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The name is not a device's.
    #[error(transparent)]
    Unknown(#[from] UnknownDevice),
    /// The program was built without what drives it.
    #[error(
        "device \"{device}\" needs a build with the {feature} feature (cargo build --features {feature})"
    )]
    NotBuilt {
        /// The device asked for.
        device: DeviceName,
        /// The feature that adds it.
        feature: &'static str,
    },
    /// There is no driver, or none that works.
    #[error("device \"{device}\" is out of reach: {reason}")]
    Driver {
        /// The device asked for.
        device: DeviceName,
        /// What is wrong with the driver.
        reason: DriverError,
    },
    /// There are fewer devices.
    #[error("there is no device \"{device}\": this machine has {count}, counted from cuda:0")]
    Absent {
        /// The device asked for.
        device: DeviceName,
        /// How many there are.
        count: usize,
    },
    /// Kernels can't be compiled.
    #[error("device \"{device}\" lacks its math library: {reason}")]
    Libdevice {
        /// The device asked for.
        device: DeviceName,
        /// Where it was looked for.
        reason: NoLibdevice,
    },
}

/// The device called `cpu`, `cuda`, `cuda:N` or `wgpu`.
///
/// # Errors
/// If the name is none of these, the build has no such device, or the machine lacks what it needs.
pub fn parse(name: &str) -> Result<Device, DeviceError> {
    open(name.parse()?)
}

/// The device of that name. Memory is taken when the first tensor is made on it.
///
/// # Errors
/// If the build has no such device, or the machine lacks what it needs.
pub fn open(name: DeviceName) -> Result<Device, DeviceError> {
    match name {
        DeviceName::Cpu => Ok(Device::flex()),
        DeviceName::Cuda(index) => cuda(name, index),
        DeviceName::Wgpu => wgpu(name),
    }
}

/// The float type of tensors of a setting.
pub fn float_type(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
    }
}

#[cfg(feature = "cuda")]
fn cuda(device: DeviceName, index: u8) -> Result<Device, DeviceError> {
    let cards = cards::cards().map_err(|reason| DeviceError::Driver { device, reason })?;
    let Some(card) = cards.get(usize::from(index)) else {
        let count = cards.len();
        return Err(DeviceError::Absent { device, count });
    };
    libdevice::find().map_err(|reason| DeviceError::Libdevice { device, reason })?;
    cache::set_up(&card.name);
    Ok(Device::cuda(usize::from(index)))
}

#[cfg(not(feature = "cuda"))]
fn cuda(device: DeviceName, _index: u8) -> Result<Device, DeviceError> {
    let feature = "cuda";
    Err(DeviceError::NotBuilt { device, feature })
}

#[cfg(feature = "wgpu")]
fn wgpu(_device: DeviceName) -> Result<Device, DeviceError> {
    cache::set_up("wgpu");
    Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(device: DeviceName) -> Result<Device, DeviceError> {
    let feature = "wgpu";
    Err(DeviceError::NotBuilt { device, feature })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_devices_or_clear_errors() {
        assert_eq!(parse("cpu").unwrap(), Device::flex());
        for name in ["gpu", "cuda:x", "cuda0", ""] {
            let error = parse(name).unwrap_err();
            assert_eq!(error, DeviceError::Unknown(UnknownDevice(name.into())));
        }
        #[cfg(not(feature = "cuda"))]
        assert_eq!(
            parse("cuda:1").unwrap_err().to_string(),
            "device \"cuda:1\" needs a build with the cuda feature (cargo build --features cuda)"
        );
    }

    /// Where there is no driver, or no such card: never a panic.
    #[cfg(feature = "cuda")]
    #[test]
    fn a_card_that_is_not_there_is_a_clear_error() {
        let error = parse("cuda:255").unwrap_err();
        assert!(
            matches!(
                error,
                DeviceError::Driver { .. } | DeviceError::Absent { .. }
            ),
            "{error}"
        );
    }
}
