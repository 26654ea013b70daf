use std::{fmt, str::FromStr};

/// Where one process computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceName {
    /// This machine's processors.
    Cpu,
    /// A GPU by its number, counted from 0 as the driver counts.
    Cuda(u8),
    /// Whatever adapter wgpu finds: for checks on machines without CUDA, not for training.
    Wgpu,
}

/// Text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown device {0:?}, expected \"cpu\", \"cuda:N\" or \"wgpu\"")]
pub struct UnknownDevice(pub String);

impl DeviceName {
    /// The number of a CUDA card.
    pub fn card(self) -> Option<u8> {
        match self {
            Self::Cuda(index) => Some(index),
            Self::Cpu | Self::Wgpu => None,
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.pad("cpu"),
            Self::Cuda(index) => f.pad(&format!("cuda:{index}")),
            Self::Wgpu => f.pad("wgpu"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        let unknown = || UnknownDevice(name.to_owned());
        match name {
            "cpu" => Ok(Self::Cpu),
            "wgpu" => Ok(Self::Wgpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let digits = name.strip_prefix("cuda:").ok_or_else(unknown)?;
                // `parse` takes a sign too, and a second spelling of a number would hide that two names are one card.
                let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
                let index = digits.parse().ok().filter(|_| plain);
                index.map(Self::Cuda).ok_or_else(unknown)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        for (name, device) in [
            ("cpu", DeviceName::Cpu),
            ("cuda:0", DeviceName::Cuda(0)),
            ("cuda:63", DeviceName::Cuda(63)),
            ("wgpu", DeviceName::Wgpu),
        ] {
            assert_eq!(name.parse(), Ok(device));
            assert_eq!(device.to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        assert_eq!("cuda:07".parse(), Ok(DeviceName::Cuda(7)));
    }

    #[test]
    fn what_is_no_device_is_named() {
        for name in [
            "gpu", "cuda:", "cuda:x", "cuda:+1", "cuda:-1", "cuda:256", "cuda0", "cuda:*", "",
        ] {
            let error = name.parse::<DeviceName>().expect_err(name).to_string();
            assert!(error.contains(&format!("{name:?}")), "{error}");
        }
    }
}
