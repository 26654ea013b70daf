//! A dataset as the model sees it: latents, and prompts as far as they are encoded once.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use retouch_models::editor::{Editor, ImageSize, Prompt, PromptBatch, PromptInput, fit};
use retouch_models::images;

use super::SftError;
use super::options::TextEncoders;
use super::rows::Pair;
use crate::lanes::Lanes;
use crate::metrics::host;

/// Rows between two reports of progress.
const ROWS_AT_ONCE: usize = 64;

/// All rows of a file, encoded once.
pub(super) struct Examples {
    sources: Vec<Vec<f32>>,
    targets: Vec<Vec<f32>>,
    prompts: Prompts,
    /// Index into `prompts` of every row.
    prompt_of_row: Vec<usize>,
    /// Tokens and channels of a packed latent.
    latent: [usize; 2],
}

/// The different prompts, as far as they can be encoded once and for all.
enum Prompts {
    /// For text encoders that are trained.
    Raw(Vec<String>),
    /// What frozen text encoders make of them.
    Encoded(Vec<Prompt>),
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

/// Some rows' prompts.
#[allow(clippy::large_enum_variant, reason = "there is one per batch")]
pub(super) enum Text {
    /// For text encoders that are trained.
    Raw(Vec<String>),
    /// What frozen text encoders made of them.
    Encoded(PromptBatch),
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
        rows: &[Pair],
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
            text: self.text(rows),
        }
    }

    fn text(&self, rows: &[usize]) -> Text {
        let prompts = rows.iter().map(|&row| self.prompt_of_row[row]);
        match &self.prompts {
            Prompts::Raw(all) => Text::Raw(prompts.map(|prompt| all[prompt].clone()).collect()),
            Prompts::Encoded(all) => {
                Text::Encoded(PromptBatch::stack(prompts.map(|prompt| &all[prompt])))
            }
        }
    }
}

impl Encoding<'_> {
    /// Each different prompt once, and which of them every row has. Where the text encoder sees the source, the
    /// same words about another image are another prompt.
    fn prompts(&self, rows: &[Pair]) -> Result<(Prompts, Vec<usize>), SftError> {
        let sees_sources = self.editor.prompt_sees_sources();
        let mut different: Vec<&Pair> = Vec::new();
        let mut known = BTreeMap::new();
        let mut prompt_of_row = Vec::with_capacity(rows.len());
        for row in rows {
            let key = (&row.prompt, sees_sources.then_some(&row.image));
            let next = different.len();
            let prompt = *known.entry(key).or_insert(next);
            if prompt == next {
                different.push(row);
            }
            prompt_of_row.push(prompt);
        }
        let prompts = match self.text_encoders {
            TextEncoders::Trained => {
                Prompts::Raw(different.iter().map(|row| row.prompt.clone()).collect())
            }
            TextEncoders::Frozen => {
                let encoded = different.iter().map(|row| self.prompt(row));
                Prompts::Encoded(encoded.collect::<Result<_, _>>()?)
            }
        };
        Ok((prompts, prompt_of_row))
    }

    fn prompt(&self, row: &Pair) -> Result<Prompt, SftError> {
        let sources = match self.editor.prompt_sees_sources() {
            true => vec![fit(&open(&row.image)?, self.size)],
            false => Vec::new(),
        };
        let input = PromptInput {
            prompt: &row.prompt,
            sources: &sources,
        };
        let prompts = self
            .editor
            .encode_prompts(&[input], self.max_sequence_length)?;
        Ok(prompts.row(0))
    }

    /// Packed latents of a row's source and target.
    fn pair(&self, row: &Pair) -> Result<(Vec<f32>, Vec<f32>), SftError> {
        Ok((self.latents(&row.image)?, self.latents(&row.target)?))
    }

    /// Packed latents of an image file.
    fn latents(&self, path: &Path) -> Result<Vec<f32>, SftError> {
        Ok(host(self.editor.encode_image(&open(path)?, self.size)?))
    }
}

fn open(path: &Path) -> Result<RgbImage, SftError> {
    images::open(path).map_err(|source| SftError::Image {
        path: path.to_owned(),
        source,
    })
}
