use std::path::Path;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use image::RgbImage;

use super::latents::LatentFormat;
use super::pixels::{to_images, to_tensor};
use super::{EditError, ImageSize};
use crate::autoencoder_kl::AutoencoderKl;
use crate::clip::ClipText;
use crate::t5::T5Encoder;
use crate::tokenizer::Tokenizer;
use crate::weights::LoadError;

/// Most pixels that are decoded at once; more images go one batch after another.
pub(crate) const DECODED_PIXELS_MAX: usize = 1 << 20;

/// What turns texts and images into what the transformer sees, and back.
#[derive(Debug, Clone)]
pub struct Encoders {
    /// Images to latents and back.
    pub vae: AutoencoderKl,
    /// CLIP: the pooled text.
    pub text_encoder: ClipText,
    /// T5: the text tokens.
    pub text_encoder_2: T5Encoder,
    /// CLIP's tokens.
    pub tokenizer: Tokenizer,
    /// T5's tokens.
    pub tokenizer_2: Tokenizer,
}

impl Encoders {
    /// The encoders of a diffusers pipeline folder; the text encoders' weights become `dtype`, the
    /// VAE's f32.
    ///
    /// # Errors
    /// If a part can't be loaded.
    pub fn load(folder: &Path, device: &Device, dtype: DType) -> Result<Self, LoadError> {
        let part = |name: &str| folder.join(name);
        Ok(Self {
            vae: AutoencoderKl::load(&part("vae"), device)?,
            text_encoder: ClipText::load_as(&part("text_encoder"), device, dtype)?,
            text_encoder_2: T5Encoder::load_as(&part("text_encoder_2"), device, dtype)?,
            tokenizer: Tokenizer::load(&folder.join("tokenizer"))?,
            tokenizer_2: Tokenizer::load(&folder.join("tokenizer_2"))?,
        })
    }

    /// Saves the encoders into a diffusers pipeline folder.
    ///
    /// # Errors
    /// If the folder can't be written.
    pub fn save(&self, folder: &Path) -> Result<(), LoadError> {
        self.vae.save(&folder.join("vae"))?;
        self.text_encoder.save(&folder.join("text_encoder"))?;
        self.text_encoder_2.save(&folder.join("text_encoder_2"))?;
        self.tokenizer.save(&folder.join("tokenizer"))?;
        self.tokenizer_2.save(&folder.join("tokenizer_2"))
    }

    /// Pooled text and text tokens. Padding is attended to, as the reference does.
    ///
    /// # Shapes
    /// * outputs: `[P]` and `[max_sequence_length, J]`
    ///
    /// # Errors
    /// If the prompt can't be tokenized.
    pub fn encode_text(
        &self,
        prompt: &str,
        max_sequence_length: usize,
        device: &Device,
    ) -> Result<(Tensor<1>, Tensor<2>), EditError> {
        let row = |ids: Vec<u32>| {
            let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
            let shape = [1, ids.len()];
            Tensor::<2, Int>::from_data(TensorData::new(ids, shape), device)
        };
        let positions = self.text_encoder.config().max_position_embeddings;
        let length = self.tokenizer.max_length().min(positions);
        let ids = self.tokenizer.encode_padded(prompt, length)?;
        let pooled = self.text_encoder.forward(row(ids)).pooler_output;
        let ids = self
            .tokenizer_2
            .encode_padded(prompt, max_sequence_length)?;
        let tokens = self.text_encoder_2.forward(row(ids), None);
        let wide = |x: Tensor<2>| x.cast(DType::F32);
        let tokens = tokens.squeeze_dim(0);
        Ok((wide(pooled).squeeze_dim(0), wide(tokens)))
    }

    /// The packed latents of an image whose sides are multiples of a token's.
    ///
    /// # Shapes
    /// * output: `[R, C]`
    pub(super) fn encode_image(
        &self,
        image: &RgbImage,
        format: LatentFormat,
        device: &Device,
    ) -> Tensor<2> {
        let latents = self.vae.encode_scaled(to_tensor(image, device));
        format.pack(latents).squeeze_dim(0)
    }

    /// # Shapes
    /// * tokens: `[K, S, C]`
    /// * output in 0..1: `[K, 3, H, W]`
    pub(super) fn decode(
        &self,
        tokens: Tensor<3>,
        size: ImageSize,
        format: LatentFormat,
    ) -> Tensor<4> {
        let latents = format.unpack(tokens, size);
        let at_once = (DECODED_PIXELS_MAX / (size.height * size.width)).max(1);
        let parts = latents
            .split(at_once, 0)
            .into_iter()
            .map(|part| self.vae.decode_scaled(part));
        (Tensor::cat(parts.collect(), 0) / 2.0 + 0.5).clamp(0.0, 1.0)
    }

    pub(super) fn decode_images(
        &self,
        tokens: Tensor<3>,
        size: ImageSize,
        format: LatentFormat,
    ) -> Vec<RgbImage> {
        to_images(self.decode(tokens, size, format))
    }
}
