use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::format_of;
use crate::autoencoder_kl::AutoencoderKl;
use crate::clip::ClipText;
use crate::editor::base_model::vae_type;
use crate::editor::{EditError, Encoders, LatentFormat, PromptBatch, PromptInput, TextWidths};
use crate::init::Init;
use crate::t5::T5Encoder;
use crate::tokenizer::{TokenizeError, Tokenizer};
use crate::weights::{LoadError, Pretrained, read_config};

/// What turns texts and images into what the transformer sees, and back.
#[derive(Debug, Clone)]
pub struct FluxKontextEncoders {
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

impl Encoders for FluxKontextEncoders {
    fn load(folder: &Path, device: &Device, dtype: DType) -> Result<Self, LoadError> {
        let part = |name: &str| folder.join(name);
        Ok(Self {
            vae: AutoencoderKl::load_as(&part("vae"), device, vae_type(device, dtype))?,
            text_encoder: ClipText::load_as(&part("text_encoder"), device, dtype)?,
            text_encoder_2: T5Encoder::load_as(&part("text_encoder_2"), device, dtype)?,
            tokenizer: Tokenizer::load(&folder.join("tokenizer"))?,
            tokenizer_2: Tokenizer::load(&folder.join("tokenizer_2"))?,
        })
    }

    fn random_text(folder: &Path, device: &Device, init: &Init) -> Result<Self, LoadError> {
        let clip = read_config(&folder.join("text_encoder").join("config.json"))?;
        let t5 = read_config(&folder.join("text_encoder_2").join("config.json"))?;
        Ok(Self {
            vae: AutoencoderKl::load(&folder.join("vae"), device)?,
            text_encoder: ClipText::init(&clip, init),
            text_encoder_2: T5Encoder::init(&t5, init),
            tokenizer: Tokenizer::load(&folder.join("tokenizer"))?,
            tokenizer_2: Tokenizer::load(&folder.join("tokenizer_2"))?,
        })
    }

    fn save(&self, folder: &Path) -> Result<(), LoadError> {
        self.vae.save(&folder.join("vae"))?;
        self.text_encoder.save(&folder.join("text_encoder"))?;
        self.text_encoder_2.save(&folder.join("text_encoder_2"))?;
        self.tokenizer.save(&folder.join("tokenizer"))?;
        self.tokenizer_2.save(&folder.join("tokenizer_2"))
    }

    fn format(&self) -> LatentFormat {
        format_of(self.vae.config())
    }

    fn text_widths(&self) -> TextWidths {
        TextWidths {
            tokens: Some(self.text_encoder_2.config().d_model),
            pooled: Some(self.text_encoder.config().hidden_size),
        }
    }

    fn visit_text<V: ModuleVisitor>(&self, visitor: &mut V) {
        self.text_encoder.visit(visitor);
        self.text_encoder_2.visit(visitor);
    }

    fn map_text<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        Self {
            text_encoder: self.text_encoder.map(mapper),
            text_encoder_2: self.text_encoder_2.map(mapper),
            ..self
        }
    }
}

impl FluxKontextEncoders {
    /// Pooled text and `max_sequence_length` text tokens. Padding is attended to, as the reference does.
    pub(super) fn encode_prompts(
        &self,
        prompts: &[PromptInput<'_>],
        max_sequence_length: usize,
        device: &Device,
    ) -> Result<PromptBatch, EditError> {
        let positions = self.text_encoder.config().max_position_embeddings;
        let length = self.tokenizer.max_length().min(positions);
        let ids = ids(&self.tokenizer, prompts, length, device)?;
        let pooled = self.text_encoder.forward(ids).pooler_output;
        let ids = self::ids(&self.tokenizer_2, prompts, max_sequence_length, device)?;
        Ok(PromptBatch {
            tokens: self.text_encoder_2.forward(ids, None).cast(DType::F32),
            lengths: vec![max_sequence_length; prompts.len()],
            pooled: Some(pooled.cast(DType::F32)),
        })
    }
}

/// `length` tokens of each prompt: `[B, length]`.
fn ids(
    tokenizer: &Tokenizer,
    prompts: &[PromptInput<'_>],
    length: usize,
    device: &Device,
) -> Result<Tensor<2, Int>, TokenizeError> {
    let mut ids = Vec::with_capacity(prompts.len() * length);
    for input in prompts {
        let row = tokenizer.encode_padded(input.prompt, length)?;
        ids.extend(row.into_iter().map(i64::from));
    }
    let data = TensorData::new(ids, [prompts.len(), length]);
    Ok(Tensor::from_data(data, device))
}
