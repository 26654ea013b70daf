//! A dataset as the model sees it: latents, and prompts as far as they are encoded once.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use retouch_models::editor::{
    Editor, ImageSize, Prompt, PromptBatch, PromptInput, SizeRule, Sources,
};
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
    rows: Vec<Encoded>,
    prompts: Prompts,
    /// Index into `prompts` of every row.
    prompt_of_row: Vec<usize>,
    /// Tokens and channels of a target's packed latent.
    latent: [usize; 2],
}

/// A row's packed latents.
struct Encoded {
    target: Vec<f32>,
    /// Of all sources, one after the other.
    sources: Vec<f32>,
    source_sizes: Vec<ImageSize>,
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
    /// Packed latents of the sources: `[B, R, C]`
    pub(super) sources: Tensor<3>,
    /// Sizes of the sources, which are those of every row.
    pub(super) source_sizes: Vec<ImageSize>,
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
            rows: Vec::with_capacity(rows.len()),
            prompts,
            prompt_of_row,
            latent: encoding.editor.latent_shape(encoding.size),
        };
        for part in rows.chunks(ROWS_AT_ONCE) {
            let encoded = encoding
                .lanes
                .map(part.iter().collect(), |row| encoding.encode(row));
            for row in encoded {
                examples.rows.push(row?);
            }
            advance(examples.rows.len())?;
        }
        Ok(examples)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The sizes of a row's sources.
    pub(super) fn source_sizes(&self, row: usize) -> &[ImageSize] {
        &self.rows[row].source_sizes
    }

    /// The given rows, at least one and with sources of the same sizes, as tensors on a device.
    pub(super) fn batch(&self, rows: &[usize], device: &Device) -> Batch {
        let [tokens, channels] = self.latent;
        let first = &self.rows[rows[0]];
        let latents = |of: fn(&Encoded) -> &[f32], tokens: usize| {
            let values = rows.iter().flat_map(|&row| of(&self.rows[row]));
            let values: Vec<f32> = values.copied().collect();
            Tensor::from_data(
                TensorData::new(values, [rows.len(), tokens, channels]),
                device,
            )
        };
        Batch {
            x0: latents(|row| &row.target, tokens),
            sources: latents(|row| &row.sources, first.sources.len() / channels),
            source_sizes: first.source_sizes.clone(),
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
    /// same words about other images are another prompt.
    fn prompts(&self, rows: &[Pair]) -> Result<(Prompts, Vec<usize>), SftError> {
        let sees_sources = self.editor.prompt_sees_sources();
        let mut different: Vec<&Pair> = Vec::new();
        let mut known = BTreeMap::new();
        let mut prompt_of_row = Vec::with_capacity(rows.len());
        for row in rows {
            let key = (&row.prompt, sees_sources.then_some(&row.images));
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
            true => self.sources(row)?.images,
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

    fn encode(&self, row: &Pair) -> Result<Encoded, SftError> {
        let sources = self.sources(row)?;
        let source_size = sources.source_size();
        let encoded = self
            .editor
            .encode_sources(&sources.images, source_size, self.size)?;
        let target = self.editor.encode_image(&open(&row.target)?, self.size)?;
        Ok(Encoded {
            target: host(target),
            sources: host(encoded.latents),
            source_sizes: encoded.resized.iter().map(ImageSize::of).collect(),
        })
    }

    /// The source images as rollouts see them.
    fn sources(&self, row: &Pair) -> Result<Sources, SftError> {
        let images = row.images.iter().map(|path| open(path));
        let images: Vec<RgbImage> = images.collect::<Result<_, _>>()?;
        Ok(Sources::sized(&images, SizeRule::Fixed(self.size)))
    }
}

fn open(path: &Path) -> Result<RgbImage, SftError> {
    images::open(path).map_err(|source| SftError::Image {
        path: path.to_owned(),
        source,
    })
}
