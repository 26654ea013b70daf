//! What NVIDIA's driver says about this machine's cards.
//!
//! Nothing here opens a card but [`Driver::free_bytes`]: `launch` asks for eight cards' memory and keeps none of it.

use serde::Serialize;

/// A GPU that the driver knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Card {
    /// Its number, as in `cuda:N`.
    pub index: u8,
    /// The driver's name for it, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Its memory, in bytes.
    pub total_bytes: u64,
    /// Its compute capability: `[9, 0]` is 9.0.
    pub compute_capability: [u32; 2],
    /// Its identity over processes and numberings (`CUDA_VISIBLE_DEVICES`), as 32 hexadecimal digits.
    pub uuid: String,
}

/// Why there is no driver to ask.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// This program can't ask.
    #[error("this build has no CUDA (cargo build --features cuda)")]
    NotBuilt,
    /// It is not installed.
    #[error(
        "libcuda.so.1 is not on this machine: it comes with NVIDIA's driver (Debian: libcuda1; a container needs NVIDIA's \
         container toolkit and --gpus all)"
    )]
    Missing,
    /// It lacks what is used here.
    #[error(
        "the driver is made for CUDA {}, this build needs one for CUDA {} or newer: update NVIDIA's driver",
        version(*.found),
        version(*.oldest)
    )]
    TooOld {
        /// The CUDA version it is made for, as a number: 12040 for 12.4.
        found: u32,
        /// The oldest that will do.
        oldest: u32,
    },
    /// It does not work.
    #[error("the driver says {0}")]
    Failed(String),
}

/// A CUDA version as people write it: 12.8 for 12080.
pub fn version(number: u32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

#[cfg(feature = "cuda")]
pub use driver::{Driver, driver};

/// The cards of this machine, in the order of their numbers.
///
/// # Errors
/// If the driver is missing, too old or does not answer.
#[cfg(feature = "cuda")]
pub fn cards() -> Result<Vec<Card>, DriverError> {
    driver()?.cards()
}

/// The cards of this machine: none that this build could use.
///
/// # Errors
/// Always: [`DriverError::NotBuilt`].
#[cfg(not(feature = "cuda"))]
pub fn cards() -> Result<Vec<Card>, DriverError> {
    Err(DriverError::NotBuilt)
}

#[cfg(feature = "cuda")]
mod driver {
    use std::sync::Arc;

    use cudarc::driver::{CudaContext, result, sys};

    use super::{Card, DriverError};

    /// The oldest driver with all functions that this build calls. cudarc's bindings are those of the toolkit it was
    /// built beside, else the newest; those of CUDA 13 time kernels with `cuEventElapsedTime_v2`, which came with 12.8,
    /// and panic where it is missing. Before 12.0 there are no tensor maps, which sm_90 kernels use.
    const OLDEST: u32 = if sys::CUDA_VERSION >= 13_000 {
        12_080
    } else {
        12_000
    };

    /// A driver that is there and new enough.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Driver {
        /// The CUDA version it is made for, as a number: 12080 for 12.8.
        pub cuda: u32,
    }

    /// This machine's driver.
    ///
    /// # Errors
    /// If it is missing, too old, or can't start.
    pub fn driver() -> Result<Driver, DriverError> {
        // SAFETY: the driver's initializers have no preconditions.
        if !unsafe { sys::is_culib_present() } {
            return Err(DriverError::Missing);
        }
        let mut cuda = 0;
        // SAFETY: it writes one integer, and needs no `cuInit`.
        unsafe { sys::cuDriverGetVersion(&mut cuda) }
            .result()
            .map_err(failed)?;
        let driver = Driver {
            cuda: cuda.max(0) as u32,
        };
        if driver.cuda < OLDEST {
            return Err(DriverError::TooOld {
                found: driver.cuda,
                oldest: OLDEST,
            });
        }
        result::init().map_err(failed)?;
        Ok(driver)
    }

    impl Driver {
        /// The number of cards.
        ///
        /// # Errors
        /// If the driver does not answer.
        pub fn count(self) -> Result<usize, DriverError> {
            match result::device::get_count() {
                Ok(count) => Ok(count.max(0) as usize),
                Err(result::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
                Err(error) => Err(failed(error)),
            }
        }

        /// All cards.
        ///
        /// # Errors
        /// If the driver does not answer.
        pub fn cards(self) -> Result<Vec<Card>, DriverError> {
            let count = self.count()?.min(usize::from(u8::MAX) + 1);
            (0..count).map(|index| self.card(index as u8)).collect()
        }

        fn card(self, index: u8) -> Result<Card, DriverError> {
            use sys::CUdevice_attribute_enum::{
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
            };
            let device = result::device::get(i32::from(index)).map_err(failed)?;
            let attribute = |which| {
                // SAFETY: the device is one that the driver gave.
                let value = unsafe { result::device::get_attribute(device, which) };
                value.map(|value| value.max(0) as u32).map_err(failed)
            };
            // SAFETY: as above.
            let total_bytes = unsafe { result::device::total_mem(device) }.map_err(failed)? as u64;
            let uuid = result::device::get_uuid(device).map_err(failed)?;
            Ok(Card {
                index,
                name: result::device::get_name(device).map_err(failed)?,
                total_bytes,
                compute_capability: [attribute(MAJOR)?, attribute(MINOR)?],
                uuid: uuid
                    .bytes
                    .map(|byte| format!("{:02x}", byte as u8))
                    .concat(),
            })
        }

        /// Memory of a card that no process has, in bytes.
        ///
        /// The driver tells it to those alone that have the card open: a few hundred MiB are this process's own until
        /// the call returns, and are not counted as free.
        ///
        /// # Errors
        /// If the card can't be opened: it may be full, or in another process's exclusive use.
        pub fn free_bytes(self, index: u8) -> Result<u64, DriverError> {
            let context: Arc<CudaContext> = CudaContext::new(usize::from(index)).map_err(failed)?;
            let (free, _) = context.mem_get_info().map_err(failed)?;
            Ok(free as u64)
        }
    }

    /// The error's name and what it means, where the driver knows them.
    fn failed(error: result::DriverError) -> DriverError {
        let texts = [error.error_name(), error.error_string()].map(Result::ok);
        let texts = texts
            .into_iter()
            .flatten()
            .map(|text| text.to_string_lossy());
        let text = texts.collect::<Vec<_>>().join(": ");
        DriverError::Failed(match text.is_empty() {
            true => error.to_string(),
            false => text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_is_too_old_says_both_versions() {
        let (found, oldest) = (12_040, 12_080);
        let text = DriverError::TooOld { found, oldest }.to_string();
        assert!(
            text.contains("CUDA 12.4") && text.contains("CUDA 12.8"),
            "{text}"
        );
    }

    #[test]
    fn asking_for_cards_never_panics() {
        match cards() {
            Ok(cards) => assert!(cards.iter().all(|card| card.total_bytes > 0), "{cards:?}"),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
