use burn::tensor::{Device, Tensor};
use image::RgbImage;

/// What a prompt's embeddings are made from.
#[derive(Debug, Clone, Copy)]
pub struct PromptInput<'a> {
    /// The instruction.
    pub prompt: &'a str,
    /// The source images, for base models whose text encoder sees them.
    pub sources: &'a [RgbImage],
}

/// An encoded prompt.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// Text tokens: `[T, J]`
    pub tokens: Tensor<2>,
    /// Pooled text, where the model takes it: `[P]`
    pub pooled: Option<Tensor<1>>,
}

/// Encoded prompts, one per row.
#[derive(Debug, Clone)]
pub struct PromptBatch {
    /// Text tokens, with zeros after those of shorter rows: `[B, T, J]`
    pub tokens: Tensor<3>,
    /// Number of real text tokens of each row.
    pub lengths: Vec<usize>,
    /// Pooled text, where the model takes it: `[B, P]`
    pub pooled: Option<Tensor<2>>,
}

impl PromptBatch {
    /// The rows of some prompts.
    ///
    /// # Panics
    /// If there is none, or only some are pooled.
    pub fn stack<'a>(prompts: impl IntoIterator<Item = &'a Prompt>) -> Self {
        let prompts: Vec<&Prompt> = prompts.into_iter().collect();
        let lengths: Vec<usize> = prompts.iter().map(|p| p.tokens.dims()[0]).collect();
        let longest = *lengths.iter().max().expect("at least one prompt");
        let rows = prompts.iter().map(|p| padded(p.tokens.clone(), longest));
        let pooled: Vec<Tensor<1>> = prompts.iter().filter_map(|p| p.pooled.clone()).collect();
        assert!(
            pooled.is_empty() || pooled.len() == prompts.len(),
            "all prompts are pooled or none"
        );
        Self {
            tokens: Tensor::stack(rows.collect(), 0),
            pooled: (!pooled.is_empty()).then(|| Tensor::stack(pooled, 0)),
            lengths,
        }
    }

    /// The prompt of one row.
    pub fn row(&self, row: usize) -> Prompt {
        let tokens = self.tokens.clone().narrow(0, row, 1).squeeze_dim(0);
        let pooled = self.pooled.clone();
        Prompt {
            tokens: tokens.narrow(0, 0, self.lengths[row]),
            pooled: pooled.map(|pooled| pooled.narrow(0, row, 1).squeeze_dim(0)),
        }
    }

    /// The same on another device, in another float type.
    pub(super) fn on(self, place: (&Device, burn::tensor::DType)) -> Self {
        let (device, dtype) = place;
        Self {
            tokens: self.tokens.to_device(device).cast(dtype),
            pooled: self
                .pooled
                .map(|pooled| pooled.to_device(device).cast(dtype)),
            lengths: self.lengths,
        }
    }
}

fn padded(tokens: Tensor<2>, length: usize) -> Tensor<2> {
    let [own, width] = tokens.dims();
    if own == length {
        return tokens;
    }
    let padding = Tensor::zeros([length - own, width], (&tokens.device(), tokens.dtype()));
    Tensor::cat(vec![tokens, padding], 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise;

    #[test]
    fn rows_of_a_stack_are_what_was_stacked() {
        let device = Device::flex();
        let prompt = |seed: u64, length: usize| Prompt {
            tokens: noise::normal(seed, [length, 3], &device),
            pooled: Some(noise::normal(seed + 1, [2], &device)),
        };
        let prompts = [prompt(1, 2), prompt(3, 4)];
        let batch = PromptBatch::stack(&prompts);
        assert_eq!(
            (batch.tokens.dims(), &batch.lengths[..]),
            ([2, 4, 3], &[2, 4][..])
        );
        for (row, prompt) in prompts.iter().enumerate() {
            let found = batch.row(row);
            assert_eq!(found.tokens.to_data(), prompt.tokens.to_data());
            let pooled = |prompt: &Prompt| prompt.pooled.clone().unwrap().into_data();
            assert_eq!(pooled(&found), pooled(prompt));
        }
    }
}
