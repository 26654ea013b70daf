//! What one process hands to another as bytes: clean latents and adapters.
//!
//! Both are safetensors files; equal values give equal bytes, so their hashes tell whether two
//! processes made the same (A9).

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};

use crate::weights::{LoadError, Weights, to_safetensors};

const LATENTS: &str = "x0";
const ADAPTER: &str = "adapter";

/// A group's clean latents as bytes.
///
/// # Shapes
/// * latents: `[K, S, C]`
pub fn latents_to_bytes(latents: TensorData) -> Vec<u8> {
    to_bytes(LATENTS, latents.convert::<f32>())
}

/// Reads what [`latents_to_bytes`] wrote.
///
/// # Shapes
/// * output: `[K, S, C]`, f32
///
/// # Errors
/// If the bytes are not a safetensors file with a tensor `x0` of rank 3.
pub fn latents_from_bytes(bytes: &[u8], device: &Device) -> Result<Tensor<3>, LoadError> {
    read("latents blob", bytes)?.tensor(LATENTS, device)
}

/// An adapter's flat form as bytes, see [`LoraAdapter::to_flat`](crate::lora::LoraAdapter::to_flat).
pub fn adapter_to_bytes(flat: &[f32]) -> Vec<u8> {
    to_bytes(ADAPTER, TensorData::new(flat.to_vec(), [flat.len()]))
}

/// Reads what [`adapter_to_bytes`] wrote.
///
/// # Errors
/// If the bytes are not a safetensors file with a tensor `adapter` of `flat_len` values.
pub fn adapter_from_bytes(bytes: &[u8], flat_len: usize) -> Result<Vec<f32>, LoadError> {
    const NAME: &str = "adapter blob";
    let weights = read(NAME, bytes)?;
    let found = weights
        .data(ADAPTER)
        .filter(|data| data.shape()[..] == [flat_len]);
    let Some(data) = found else {
        let shape = weights.shape(ADAPTER);
        let problem = format!(
            "its tensor {ADAPTER} has shape {shape:?}, the model's adapter has [{flat_len}]"
        );
        return Err(LoadError::format(Path::new(NAME), problem));
    };
    let values = data.convert::<f32>().try_to_vec::<f32>();
    values.map_err(|error| LoadError::format(Path::new(NAME), format!("{error:?}")))
}

fn to_bytes(name: &str, data: TensorData) -> Vec<u8> {
    to_safetensors(&BTreeMap::from([(name.to_owned(), data)]), &BTreeMap::new())
}

fn read(name: &str, bytes: &[u8]) -> Result<Weights, LoadError> {
    Weights::from_bytes(Path::new(name), bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latents_round_trip_bit_by_bit() {
        let device = Device::flex();
        let latents = crate::noise::normal(3, [2, 5, 4], &device);
        let bytes = latents_to_bytes(latents.to_data());
        let back = latents_from_bytes(&bytes, &device).unwrap();
        assert_eq!(back.to_data(), latents.to_data());
        assert_eq!(latents_to_bytes(back.into_data()), bytes);
    }

    #[test]
    fn adapters_round_trip_and_must_fit() {
        let flat = vec![0.5, -0.0, f32::MIN_POSITIVE];
        let bytes = adapter_to_bytes(&flat);
        let back = adapter_from_bytes(&bytes, 3).unwrap();
        assert!(
            back.iter()
                .zip(&flat)
                .all(|(a, b)| a.to_bits() == b.to_bits())
        );
        let error = adapter_from_bytes(&bytes, 4).unwrap_err().to_string();
        assert!(error.contains("[3]") && error.contains("[4]"), "{error}");
        assert!(adapter_from_bytes(b"nonsense", 3).is_err());
    }
}
