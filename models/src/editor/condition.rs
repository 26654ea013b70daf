use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::{ImageSize, Prompt, PromptBatch};
use crate::weights::{LoadError, TensorMap, Weights, to_safetensors};

/// An instruction and source images, encoded; all that sampling and training need of them.
#[derive(Debug, Clone)]
pub struct Condition {
    /// The instruction.
    pub prompt: Prompt,
    /// What classifier-free guidance leads away from, where it is wanted.
    pub negative_prompt: Option<Prompt>,
    /// Packed latents of the source images, one after the other: `[R, C]`
    pub image_latents: Tensor<2>,
    /// Size of the edited images.
    pub size: ImageSize,
    /// Sizes of the source images as they were encoded.
    pub source_sizes: Vec<ImageSize>,
}

/// Conditions of equal sizes, one per row.
#[derive(Debug, Clone)]
pub struct ConditionBatch {
    /// The instructions.
    pub prompts: PromptBatch,
    /// Packed latents of the source images: `[B, R, C]`
    pub image_latents: Tensor<3>,
    /// Size of the edited images.
    pub size: ImageSize,
    /// Sizes of the source images as they were encoded.
    pub source_sizes: Vec<ImageSize>,
}

const PROMPT: [&str; 2] = ["prompt_embeds", "pooled"];
const NEGATIVE_PROMPT: [&str; 2] = ["negative_prompt_embeds", "negative_pooled"];
const LATENTS: &str = "image_latents";

impl Condition {
    /// The condition as a safetensors file of f32; equal conditions give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut tensors = TensorMap::from([(LATENTS.to_owned(), f32s(self.image_latents.clone()))]);
        insert(&mut tensors, PROMPT, &self.prompt);
        if let Some(prompt) = &self.negative_prompt {
            insert(&mut tensors, NEGATIVE_PROMPT, prompt);
        }
        let sides = |of: fn(&ImageSize) -> usize| {
            let sides: Vec<String> = self
                .source_sizes
                .iter()
                .map(|s| of(s).to_string())
                .collect();
            sides.join(",")
        };
        let sizes = [
            ("height", self.size.height.to_string()),
            ("width", self.size.width.to_string()),
            ("source_height", sides(|size| size.height)),
            ("source_width", sides(|size| size.width)),
        ];
        let sizes = sizes.map(|(key, value)| (key.to_owned(), value));
        to_safetensors(&tensors, &BTreeMap::from(sizes))
    }

    /// Reads what [`Condition::to_bytes`] wrote.
    ///
    /// # Errors
    /// If the bytes are something else.
    pub fn from_bytes(bytes: &[u8], device: &Device) -> Result<Self, LoadError> {
        let weights = Weights::from_bytes(Path::new("condition"), bytes.to_vec())?;
        let has_negative = weights.shape(NEGATIVE_PROMPT[0]).is_some();
        let negative_prompt = has_negative.then(|| read(&weights, NEGATIVE_PROMPT, device));
        let sizes = sizes(&weights, "height", "width")?;
        let [size] = sizes[..] else {
            let problem = format!(
                "the header has {} sizes of the result, expected 1",
                sizes.len()
            );
            return Err(LoadError::format(weights.path(), problem));
        };
        Ok(Self {
            prompt: read(&weights, PROMPT, device)?,
            negative_prompt: negative_prompt.transpose()?,
            image_latents: weights.tensor(LATENTS, device)?,
            size,
            source_sizes: self::sizes(&weights, "source_height", "source_width")?,
        })
    }
}

impl ConditionBatch {
    /// The rows of some conditions.
    ///
    /// # Panics
    /// If there is none, or their sizes differ.
    pub fn stack(conditions: &[&Condition]) -> Self {
        let first = conditions.first().expect("at least one condition");
        let sizes = |c: &Condition| (c.size, c.source_sizes.clone());
        assert!(
            conditions.iter().all(|other| sizes(other) == sizes(first)),
            "the sizes of a batch are equal"
        );
        let latents = conditions.iter().map(|c| c.image_latents.clone());
        Self {
            prompts: PromptBatch::stack(conditions.iter().map(|c| &c.prompt)),
            image_latents: Tensor::stack(latents.collect(), 0),
            size: first.size,
            source_sizes: first.source_sizes.clone(),
        }
    }
}

fn f32s<const D: usize>(tensor: Tensor<D>) -> TensorData {
    tensor.into_data().convert_dtype(DType::F32)
}

fn insert(tensors: &mut TensorMap, [tokens, pooled]: [&str; 2], prompt: &Prompt) {
    tensors.insert(tokens.to_owned(), f32s(prompt.tokens.clone()));
    if let Some(tensor) = &prompt.pooled {
        tensors.insert(pooled.to_owned(), f32s(tensor.clone()));
    }
}

fn read(
    weights: &Weights,
    [tokens, pooled]: [&str; 2],
    device: &Device,
) -> Result<Prompt, LoadError> {
    let has_pooled = weights.shape(pooled).is_some();
    let pooled = has_pooled.then(|| weights.tensor(pooled, device));
    Ok(Prompt {
        tokens: weights.tensor(tokens, device)?,
        pooled: pooled.transpose()?,
    })
}

/// The sizes under two keys of the header, as many as there are numbers.
fn sizes(weights: &Weights, height: &str, width: &str) -> Result<Vec<ImageSize>, LoadError> {
    let sides = |key: &str| -> Result<Vec<usize>, LoadError> {
        let text = weights.metadata().and_then(|metadata| metadata.get(key));
        let sides = text.map(|text| text.split(',').map(str::parse).collect());
        sides.and_then(Result::ok).ok_or_else(|| {
            let problem = format!("the header has no numbers {key}, separated by commas");
            LoadError::format(weights.path(), problem)
        })
    };
    let (heights, widths) = (sides(height)?, sides(width)?);
    if heights.len() != widths.len() {
        let (rows, columns) = (heights.len(), widths.len());
        let problem = format!("the header has {rows} numbers {height}, but {columns} {width}");
        return Err(LoadError::format(weights.path(), problem));
    }
    let sizes = heights.into_iter().zip(widths);
    let sizes = sizes.map(|(height, width)| ImageSize { height, width });
    Ok(sizes.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise;

    fn prompt(seed: u64, pooled: Option<usize>) -> Prompt {
        let device = Device::flex();
        Prompt {
            tokens: noise::normal(seed, [3, 4], &device),
            pooled: pooled.map(|width| noise::normal(seed + 1, [width], &device)),
        }
    }

    fn condition(negative_prompt: Option<Prompt>, sources: usize) -> Condition {
        Condition {
            prompt: prompt(1, negative_prompt.is_none().then_some(5)),
            negative_prompt,
            image_latents: noise::normal(3, [6, 7], &Device::flex()),
            size: ImageSize {
                height: 32,
                width: 48,
            },
            source_sizes: (1..=sources).map(|n| ImageSize::square(16 * n)).collect(),
        }
    }

    #[test]
    fn conditions_round_trip_through_bytes() {
        let device = Device::flex();
        for condition in [condition(None, 1), condition(Some(prompt(5, None)), 3)] {
            let bytes = condition.to_bytes();
            let read = Condition::from_bytes(&bytes, &device).unwrap();
            assert_eq!(read.to_bytes(), bytes);
            assert_eq!(read.size, condition.size);
            assert_eq!(read.source_sizes, condition.source_sizes);
            assert_eq!(
                read.negative_prompt.is_some(),
                condition.negative_prompt.is_some()
            );
            let pooled = |prompt: Prompt| prompt.pooled.map(Tensor::into_data);
            assert_eq!(pooled(read.prompt), pooled(condition.prompt));
        }
    }

    #[test]
    fn other_bytes_are_an_error() {
        let device = Device::flex();
        assert!(Condition::from_bytes(b"nonsense", &device).is_err());
        let empty = to_safetensors(&TensorMap::new(), &BTreeMap::new());
        let error = Condition::from_bytes(&empty, &device).unwrap_err();
        assert_eq!(
            error.to_string(),
            "condition: the header has no numbers height, separated by commas"
        );
    }
}
