use std::collections::HashMap;
use std::ops::Range;

use burn::module::ParamId;
use burn::tensor::{Gradients, Tensor};

use super::LoraAdapter;

/// Gradients of an adapter's factors, from one backward pass for each part of the model.
#[derive(Debug)]
pub(crate) struct FactorGradients<'a> {
    adapter: &'a LoraAdapter,
    found: HashMap<ParamId, Tensor<2>>,
}

impl<'a> FactorGradients<'a> {
    pub(crate) fn new(adapter: &'a LoraAdapter) -> Self {
        Self {
            adapter,
            found: HashMap::new(),
        }
    }

    /// Takes those of the factors in `slots`, which no other pass has used.
    pub(crate) fn take(&mut self, slots: Range<usize>, gradients: &Gradients) {
        let pairs = slots.filter_map(|slot| self.adapter.pair(slot));
        for factor in pairs.flat_map(|pair| [&pair.a, &pair.b]) {
            if let Some(gradient) = factor.val().grad(gradients) {
                self.found.insert(factor.id, gradient);
            }
        }
    }

    /// All of them in flat form; a factor that no pass reached has zeros.
    pub(crate) fn into_flat(mut self) -> Vec<f32> {
        self.adapter.flatten(|factor| self.found.remove(&factor.id))
    }
}
