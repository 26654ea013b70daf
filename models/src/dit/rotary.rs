use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};

/// # Shapes
/// * cos, sin: `[S, head_dim / 2]`, one column per pair of neighbouring dimensions
#[derive(Debug, Clone)]
pub(crate) struct RotaryTable {
    pub(crate) cos: Tensor<2>,
    pub(crate) sin: Tensor<2>,
}

/// The tables of the two streams of joint attention.
#[derive(Clone, Copy)]
pub(crate) struct JointRotary<'a> {
    pub(crate) txt: &'a RotaryTable,
    pub(crate) img: &'a RotaryTable,
}

impl RotaryTable {
    /// The table of `tokens` tokens.
    ///
    /// # Shapes
    /// * cos, sin: `tokens` rows of `head_dim / 2` values
    pub(crate) fn new(cos: Vec<f32>, sin: Vec<f32>, tokens: usize, device: &Device) -> Self {
        let table = |values: Vec<f32>| {
            let shape = [tokens, values.len() / tokens];
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        Self {
            cos: table(cos),
            sin: table(sin),
        }
    }

    /// The rows of some tokens.
    pub(crate) fn range(&self, tokens: &Range<usize>) -> Self {
        let rows = |table: &Tensor<2>| table.clone().narrow(0, tokens.start, tokens.len());
        Self {
            cos: rows(&self.cos),
            sin: rows(&self.sin),
        }
    }
}
