use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Device, Tensor};

use super::ImageSize;
use crate::weights::{LoadError, TensorMap, Weights, to_safetensors};

/// An instruction and a source image, encoded; all that sampling and training need of them.
#[derive(Debug, Clone)]
pub struct Condition {
    /// Text tokens: `[T, J]`
    pub prompt_embeds: Tensor<2>,
    /// Pooled text: `[P]`
    pub pooled: Tensor<1>,
    /// Packed latents of the source image: `[R, C]`
    pub image_latents: Tensor<2>,
    /// Size of the edited images.
    pub size: ImageSize,
    /// Size of the source image as it was encoded.
    pub source_size: ImageSize,
}

const PROMPT: &str = "prompt_embeds";
const POOLED: &str = "pooled";
const LATENTS: &str = "image_latents";

impl Condition {
    /// The condition as a safetensors file of f32; equal conditions give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let tensors = TensorMap::from([
            (
                PROMPT.to_owned(),
                self.prompt_embeds.to_data().convert_dtype(DType::F32),
            ),
            (
                POOLED.to_owned(),
                self.pooled.to_data().convert_dtype(DType::F32),
            ),
            (
                LATENTS.to_owned(),
                self.image_latents.to_data().convert_dtype(DType::F32),
            ),
        ]);
        let sizes = [
            ("height", self.size.height),
            ("width", self.size.width),
            ("source_height", self.source_size.height),
            ("source_width", self.source_size.width),
        ];
        let sizes = sizes.map(|(key, value)| (key.to_owned(), value.to_string()));
        to_safetensors(&tensors, &BTreeMap::from(sizes))
    }

    /// Reads what [`Condition::to_bytes`] wrote.
    ///
    /// # Errors
    /// If the bytes are something else.
    pub fn from_bytes(bytes: &[u8], device: &Device) -> Result<Self, LoadError> {
        let weights = Weights::from_bytes(Path::new("condition"), bytes.to_vec())?;
        let side = |key: &str| -> Result<usize, LoadError> {
            let value = weights.metadata().and_then(|metadata| metadata.get(key));
            let value = value.and_then(|value| value.parse().ok());
            value.ok_or_else(|| {
                LoadError::format(weights.path(), format!("the header has no number {key}"))
            })
        };
        let size = |height: &str, width: &str| {
            Ok::<_, LoadError>(ImageSize {
                height: side(height)?,
                width: side(width)?,
            })
        };
        Ok(Self {
            prompt_embeds: weights.tensor(PROMPT, device)?,
            pooled: weights.tensor(POOLED, device)?,
            image_latents: weights.tensor(LATENTS, device)?,
            size: size("height", "width")?,
            source_size: size("source_height", "source_width")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise;

    #[test]
    fn conditions_round_trip_through_bytes() {
        let device = Device::flex();
        let condition = Condition {
            prompt_embeds: noise::normal(1, [3, 4], &device),
            pooled: noise::normal(2, [5], &device),
            image_latents: noise::normal(3, [6, 7], &device),
            size: ImageSize {
                height: 32,
                width: 48,
            },
            source_size: ImageSize::square(16),
        };
        let bytes = condition.to_bytes();
        let read = Condition::from_bytes(&bytes, &device).unwrap();
        assert_eq!(read.to_bytes(), bytes);
        assert_eq!(
            (read.size, read.source_size),
            (condition.size, condition.source_size)
        );
        assert_eq!(read.pooled.into_data(), condition.pooled.into_data());
    }

    #[test]
    fn other_bytes_are_an_error() {
        let device = Device::flex();
        assert!(Condition::from_bytes(b"nonsense", &device).is_err());
        let empty = to_safetensors(&TensorMap::new(), &BTreeMap::new());
        let error = Condition::from_bytes(&empty, &device)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "condition: no readable tensor is named prompt_embeds"
        );
    }
}
