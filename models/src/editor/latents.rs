use burn::tensor::{Device, Tensor, TensorData};

use super::ImageSize;
use crate::autoencoder_kl::AutoencoderKlConfig;

/// Side of the squares of latents that are packed into one token.
const PATCH: usize = 2;

/// How images become latent tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentFormat {
    /// Side of the pixel square of one latent.
    pub scale_factor: usize,
    /// Channels of a latent.
    pub channels: usize,
}

impl LatentFormat {
    /// How `vae` encodes images.
    pub(crate) fn of(vae: &AutoencoderKlConfig) -> Self {
        Self {
            scale_factor: vae.scale_factor(),
            channels: vae.latent_channels,
        }
    }

    /// Side of the pixel square of one token.
    pub fn unit(&self) -> usize {
        PATCH * self.scale_factor
    }

    /// Tokens in height and width of an image.
    fn grid(&self, size: ImageSize) -> [usize; 2] {
        [size.height / self.unit(), size.width / self.unit()]
    }

    /// Number of tokens of an image and the width of each.
    pub fn shape(&self, size: ImageSize) -> [usize; 2] {
        let [rows, columns] = self.grid(size);
        [rows * columns, PATCH * PATCH * self.channels]
    }

    /// Latents to tokens, 2 x 2 latents each.
    ///
    /// # Shapes
    /// * latents: `[B, C, h, w]`
    /// * output: `[B, h w / 4, 4 C]`
    pub fn pack(&self, latents: Tensor<4>) -> Tensor<3> {
        let [batch, channels, height, width] = latents.dims();
        let (rows, columns) = (height / PATCH, width / PATCH);
        latents
            .reshape([batch, channels, rows, PATCH, columns, PATCH])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch, rows * columns, channels * PATCH * PATCH])
    }

    /// Tokens of an image of the given size to latents.
    ///
    /// # Shapes
    /// * tokens: `[B, h w / 4, 4 C]`
    /// * output: `[B, C, h, w]`
    pub fn unpack(&self, tokens: Tensor<3>, size: ImageSize) -> Tensor<4> {
        let [batch, _, width] = tokens.dims();
        let [rows, columns] = self.grid(size);
        let channels = width / (PATCH * PATCH);
        tokens
            .reshape([batch, rows, columns, channels, PATCH, PATCH])
            .permute([0, 3, 1, 4, 2, 5])
            .reshape([batch, channels, rows * PATCH, columns * PATCH])
    }

    /// Positions (image, row, column) of the result's tokens, image 0, then the source's, image 1.
    ///
    /// # Shapes
    /// * output: `[S + R, 3]`
    pub fn ids(&self, result: ImageSize, source: ImageSize, device: &Device) -> Tensor<2> {
        let mut ids = Vec::new();
        for (image, size) in [result, source].into_iter().enumerate() {
            let [rows, columns] = self.grid(size);
            let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
            ids.extend(places.flat_map(|(row, column)| [image as f32, row as f32, column as f32]));
        }
        let count = ids.len() / 3;
        Tensor::from_data(TensorData::new(ids, [count, 3]), device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise;

    const FORMAT: LatentFormat = LatentFormat {
        scale_factor: 8,
        channels: 3,
    };

    #[test]
    fn unpacking_undoes_packing() {
        let size = ImageSize {
            height: 64,
            width: 96,
        };
        let latents = noise::normal(1, [2, 3, 8, 12], &Device::flex());
        let tokens = FORMAT.pack(latents.clone());
        assert_eq!(tokens.dims()[1..], FORMAT.shape(size));
        assert_eq!(FORMAT.unpack(tokens, size).into_data(), latents.into_data());
    }

    #[test]
    fn a_token_is_a_square_of_latents_channel_by_channel() {
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let latents = Tensor::from_data(TensorData::new(values, [1, 3, 2, 2]), &Device::flex());
        let token: Vec<f32> = FORMAT.pack(latents).into_data().iter().collect();
        assert_eq!(token, (0..12).map(|i| i as f32).collect::<Vec<_>>());
    }

    #[test]
    fn ids_tell_result_and_source_apart() {
        let (result, source) = (
            ImageSize {
                height: 16,
                width: 32,
            },
            ImageSize::square(16),
        );
        let ids = FORMAT.ids(result, source, &Device::flex()).into_data();
        let ids: Vec<f32> = ids.iter().collect();
        assert_eq!(ids, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    }
}
