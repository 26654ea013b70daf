use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor};
use burn::tensor::{DType, Device, Tensor, TensorData};
use image::RgbImage;

use super::format_of;
use super::template::{DROPPED_TOKENS, ImageMarkup, render};
use crate::autoencoder_kl_qwen_image::AutoencoderKlQwenImage;
use crate::editor::base_model::vae_type;
use crate::editor::pixels::lanczos;
use crate::editor::size::area_size;
use crate::editor::{
    EditError, Encoders, ImageSize, LatentFormat, Prompt, PromptInput, TextWidths,
};
use crate::image_processor::{Contradiction, ImageError, ImageProcessor, Patches};
use crate::qwen2_5_vl::{Grid, Qwen2_5Vl, Qwen2_5VlConfig, TokenRows};
use crate::tokenizer::Tokenizer;
use crate::weights::{LoadError, Pretrained};

/// What turns prompts and images into what the transformer sees, and back.
#[derive(Debug, Clone)]
pub struct QwenImageEditEncoders {
    /// Images to latents and back.
    pub vae: AutoencoderKlQwenImage,
    /// Reads the instruction and looks at the source images.
    pub text_encoder: Qwen2_5Vl,
    /// Its tokens.
    pub tokenizer: Tokenizer,
    /// Cuts images into its patches.
    pub image_processor: ImageProcessor,
    /// Where it takes the tokens of images to stand.
    pub text_positions: TextPositions,
    markup: ImageMarkup,
}

/// Where the text encoder takes the tokens of images to stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TextPositions {
    /// In rows and columns, as it was trained.
    #[default]
    Multimodal,
    /// One after the other like words: what diffusers does with transformers 5 as long as it does not tell that
    /// which tokens are images (its issue 14194). For comparison with it.
    Sequential,
}

impl QwenImageEditEncoders {
    /// Joins the parts.
    ///
    /// # Errors
    /// If the tokenizer lacks the text encoder's tokens around images, or the processor cuts images into other patches than it takes.
    pub fn new(
        vae: AutoencoderKlQwenImage,
        text_encoder: Qwen2_5Vl,
        tokenizer: Tokenizer,
        image_processor: ImageProcessor,
    ) -> Result<Self, LoadError> {
        check_patches(&image_processor, text_encoder.config())?;
        Ok(Self {
            markup: markup(&tokenizer, &text_encoder)?,
            vae,
            text_encoder,
            tokenizer,
            image_processor,
            text_positions: TextPositions::default(),
        })
    }
}

impl Encoders for QwenImageEditEncoders {
    fn load(folder: &Path, device: &Device, dtype: DType) -> Result<Self, LoadError> {
        let processor = folder.join("processor");
        let tokenizer = match processor.join("tokenizer.json").is_file() {
            true => processor.clone(),
            false => folder.join("tokenizer"),
        };
        Self::new(
            AutoencoderKlQwenImage::load_as(&folder.join("vae"), device, vae_type(device, dtype))?,
            Qwen2_5Vl::load_as(&folder.join("text_encoder"), device, dtype)?,
            Tokenizer::load(&tokenizer)?,
            ImageProcessor::load(&processor)?,
        )
    }

    fn save(&self, folder: &Path) -> Result<(), LoadError> {
        self.vae.save(&folder.join("vae"))?;
        self.text_encoder.save(&folder.join("text_encoder"))?;
        self.tokenizer.save(&folder.join("tokenizer"))?;
        let processor = folder.join("processor");
        self.tokenizer.save(&processor)?;
        self.image_processor.save(&processor)
    }

    fn format(&self) -> LatentFormat {
        format_of(self.vae.config())
    }

    fn text_widths(&self) -> TextWidths {
        TextWidths {
            tokens: Some(self.text_encoder.config().text.hidden_size),
            pooled: None,
        }
    }

    fn visit_text<V: ModuleVisitor>(&self, visitor: &mut V) {
        self.text_encoder.visit(visitor);
    }

    fn map_text<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        Self {
            text_encoder: self.text_encoder.map(mapper),
            ..self
        }
    }
}

impl QwenImageEditEncoders {
    /// The text encoder's output at the user's turn and after, the images brought to about `area` pixels.
    pub(super) fn encode_prompt(
        &self,
        input: &PromptInput<'_>,
        area: usize,
        device: &Device,
    ) -> Result<Prompt, EditError> {
        let patches = input
            .sources
            .iter()
            .map(|source| self.patches(source, area));
        let patches: Vec<Patches> = patches.collect::<Result<_, _>>()?;
        let grids: Vec<Grid> = patches.iter().map(|patches| patches.grid).collect();
        let ids = self.ids(input.prompt, &grids)?;
        let kept = ids.len() - DROPPED_TOKENS;
        let tokens = TokenRows::unpadded(&[ids]);
        let positions = match self.text_positions {
            TextPositions::Multimodal => {
                tokens.rope_index(&grids, self.text_encoder.image_tokens())
            }
            TextPositions::Sequential => (0..tokens.length()).map(|place| [place; 3]).collect(),
        };
        let pixels = (!patches.is_empty()).then(|| self.pixel_values(patches, device));
        let hidden = self
            .text_encoder
            .hidden_states(&tokens, pixels, &grids, &positions);
        Ok(Prompt {
            tokens: hidden.squeeze_dim(0).narrow(0, DROPPED_TOKENS, kept),
            pooled: None,
        })
    }

    fn patches(&self, source: &RgbImage, area: usize) -> Result<Patches, ImageError> {
        let size = area_size(ImageSize::of(source), area);
        self.image_processor.patches(&lanczos(source, size))
    }

    /// # Shapes
    /// * output: `[N, channels * frames * patch * patch]`, N the sum of the images' patches
    fn pixel_values(&self, patches: Vec<Patches>, device: &Device) -> Tensor<2> {
        let features = self.image_processor.patch_features();
        let values: Vec<f32> = patches.into_iter().flat_map(|p| p.values).collect();
        let shape = [values.len() / features, features];
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// The tokens of the conversation.
    fn ids(&self, prompt: &str, grids: &[Grid]) -> Result<Vec<u32>, EditError> {
        // A prompt with markup in it could pass itself off as the conversation.
        if let Some(token) = self.tokenizer.special_token_in(prompt) {
            return Err(EditError::ControlToken { token });
        }
        let unit = self.text_encoder.config().vision.merge_unit();
        let images: Vec<usize> = grids.iter().map(|grid| grid.patches() / unit).collect();
        let ids = self
            .tokenizer
            .encode(&render(prompt, &images, &self.markup))?;
        let (tokens, min) = (ids.len(), DROPPED_TOKENS + 1);
        let max = self.text_encoder.config().text.max_position_embeddings;
        if (min..=max).contains(&tokens) {
            return Ok(ids);
        }
        Err(EditError::PromptLength { tokens, min, max })
    }
}

/// Whether the text encoder takes the processor's patches.
pub(super) fn check_patches(
    processor: &ImageProcessor,
    text_encoder: &Qwen2_5VlConfig,
) -> Result<(), LoadError> {
    processor
        .check(&text_encoder.vision)
        .map_err(|contradiction| {
            let Contradiction {
                field,
                found,
                expected,
            } = contradiction;
            let other = "but text_encoder/config.json's vision_config has";
            let problem = format!("{field} is {found}, {other} {expected}");
            LoadError::format(Path::new("processor"), problem)
        })
}

fn markup(tokenizer: &Tokenizer, text_encoder: &Qwen2_5Vl) -> Result<ImageMarkup, LoadError> {
    let config = text_encoder.config();
    let token = |field: &str, id: u32| {
        tokenizer.token_of(id).ok_or_else(|| {
            let problem = format!("{field} = {id} is no token of the tokenizer");
            LoadError::format(Path::new("text_encoder/config.json"), problem)
        })
    };
    Ok(ImageMarkup {
        start: token("vision_start_token_id", config.vision_start_token_id)?,
        token: token("image_token_id", config.image_token_id)?,
        end: token("vision_end_token_id", config.vision_end_token_id)?,
    })
}
