//! A dataset as the model sees it: latents, and prompts as tokens.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use retouch_models::editor::{Editor, ImageSize};

use super::SftError;
use super::options::TextEncoders;
use super::rows::Row;
use crate::lanes::Lanes;
use crate::metrics::host;

/// Rows between two reports of progress.
const ROWS_AT_ONCE: usize = 64;

/// All rows of a file, encoded once.
pub(super) struct Examples {
    sources: Vec<Vec<f32>>,
    targets: Vec<Vec<f32>>,
    prompts: Vec<Prompt>,
    /// Index into `prompts` of every row.
    prompt_of_row: Vec<usize>,
    /// Tokens and channels of a packed latent.
    latent: [usize; 2],
    /// T5's tokens per prompt.
    text_tokens: usize,
}

/// A prompt as far as it can be encoded once and for all.
enum Prompt {
    /// Token ids, for text encoders that are trained.
    Ids { clip: Vec<i64>, t5: Vec<i64> },
    /// What frozen text encoders make of it.
    Encoded { pooled: Vec<f32>, tokens: Vec<f32> },
}

/// Some rows as tensors.
pub(super) struct Batch {
    /// Packed latents of the targets: `[B, S, C]`
    pub(super) x0: Tensor<3>,
    /// Packed latents of the sources: `[B, S, C]`
    pub(super) sources: Tensor<3>,
    /// The prompts.
    pub(super) text: Text,
}

/// Some prompts as tensors.
pub(super) enum Text {
    /// CLIP's token ids `[B, L]` and T5's `[B, T]`.
    Ids {
        clip: Tensor<2, Int>,
        t5: Tensor<2, Int>,
    },
    /// Pooled text `[B, P]` and text tokens `[B, T, J]`.
    Encoded {
        pooled: Tensor<2>,
        tokens: Tensor<3>,
    },
}

/// How images and prompts are encoded.
#[derive(Clone, Copy)]
pub(super) struct Encoding<'a> {
    pub(super) editor: &'a Editor,
    pub(super) size: ImageSize,
    pub(super) max_sequence_length: usize,
    pub(super) text_encoders: TextEncoders,
    pub(super) lanes: &'a Lanes,
}

impl Examples {
    /// Encodes rows; `advance` is told how many rows are done after each batch of them.
    pub(super) fn encode(
        rows: &[Row],
        encoding: Encoding<'_>,
        advance: &mut dyn FnMut(usize) -> Result<(), SftError>,
    ) -> Result<Self, SftError> {
        let (prompts, prompt_of_row) = encoding.prompts(rows)?;
        let mut examples = Self {
            sources: Vec::with_capacity(rows.len()),
            targets: Vec::with_capacity(rows.len()),
            prompts,
            prompt_of_row,
            latent: encoding.editor.latent_shape(encoding.size),
            text_tokens: encoding.max_sequence_length,
        };
        for part in rows.chunks(ROWS_AT_ONCE) {
            let latents = encoding
                .lanes
                .map(part.iter().collect(), |row| encoding.pair(row));
            for pair in latents {
                let (source, target) = pair?;
                examples.sources.push(source);
                examples.targets.push(target);
            }
            advance(examples.sources.len())?;
        }
        Ok(examples)
    }

    pub(super) fn len(&self) -> usize {
        self.prompt_of_row.len()
    }

    /// The given rows as tensors on a device.
    pub(super) fn batch(&self, rows: &[usize], device: &Device) -> Batch {
        let [tokens, channels] = self.latent;
        let latents = |of: &[Vec<f32>]| {
            let values: Vec<f32> = rows
                .iter()
                .flat_map(|&row| of[row].iter().copied())
                .collect();
            Tensor::from_data(
                TensorData::new(values, [rows.len(), tokens, channels]),
                device,
            )
        };
        Batch {
            x0: latents(&self.targets),
            sources: latents(&self.sources),
            text: self.text(rows, device),
        }
    }

    fn text(&self, rows: &[usize], device: &Device) -> Text {
        let (mut clip, mut t5) = (Vec::new(), Vec::new());
        let (mut pooled, mut tokens) = (Vec::<f32>::new(), Vec::<f32>::new());
        for &row in rows {
            match &self.prompts[self.prompt_of_row[row]] {
                Prompt::Ids { clip: c, t5: t } => {
                    clip.extend(c);
                    t5.extend(t);
                }
                Prompt::Encoded {
                    pooled: p,
                    tokens: t,
                } => {
                    pooled.extend(p);
                    tokens.extend(t);
                }
            }
        }
        let n = rows.len();
        if pooled.is_empty() {
            let ids = |ids: Vec<i64>| {
                let length = ids.len() / n;
                Tensor::from_data(TensorData::new(ids, [n, length]), device)
            };
            return Text::Ids {
                clip: ids(clip),
                t5: ids(t5),
            };
        }
        let width = pooled.len() / n;
        let [length, token_width] = [self.text_tokens, tokens.len() / n / self.text_tokens];
        Text::Encoded {
            pooled: Tensor::from_data(TensorData::new(pooled, [n, width]), device),
            tokens: Tensor::from_data(TensorData::new(tokens, [n, length, token_width]), device),
        }
    }
}

impl Encoding<'_> {
    /// Each different prompt once, and which of them every row has.
    fn prompts(&self, rows: &[Row]) -> Result<(Vec<Prompt>, Vec<usize>), SftError> {
        let mut prompts = Vec::new();
        let mut known = BTreeMap::new();
        let mut prompt_of_row = Vec::with_capacity(rows.len());
        for row in rows {
            if !known.contains_key(&row.prompt) {
                known.insert(&row.prompt, prompts.len());
                prompts.push(self.prompt(&row.prompt)?);
            }
            prompt_of_row.push(known[&row.prompt]);
        }
        Ok((prompts, prompt_of_row))
    }

    fn prompt(&self, prompt: &str) -> Result<Prompt, SftError> {
        let encoders = self
            .editor
            .encoders
            .as_ref()
            .expect("training loads all parts");
        match self.text_encoders {
            TextEncoders::Frozen => {
                let length = self.max_sequence_length;
                let (pooled, tokens) =
                    encoders.encode_text(prompt, length, self.editor.device())?;
                Ok(Prompt::Encoded {
                    pooled: host(pooled),
                    tokens: host(tokens),
                })
            }
            TextEncoders::Trained => {
                let (clip, t5) = (&encoders.tokenizer, &encoders.tokenizer_2);
                let ids = |ids: Vec<u32>| ids.into_iter().map(i64::from).collect();
                Ok(Prompt::Ids {
                    clip: ids(clip.encode_padded(prompt, clip.max_length())?),
                    t5: ids(t5.encode_padded(prompt, self.max_sequence_length)?),
                })
            }
        }
    }

    /// Packed latents of a row's source and target.
    fn pair(&self, row: &Row) -> Result<(Vec<f32>, Vec<f32>), SftError> {
        Ok((self.latents(&row.image)?, self.latents(&row.target)?))
    }

    /// Packed latents of an image file.
    fn latents(&self, path: &Path) -> Result<Vec<f32>, SftError> {
        let image = retouch_models::images::open(path).map_err(|source| SftError::Image {
            path: path.to_owned(),
            source,
        })?;
        Ok(host(self.editor.encode_image(&image, self.size)?))
    }
}
