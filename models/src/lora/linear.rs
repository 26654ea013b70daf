use std::cell::RefCell;

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::LoraAdapter;
use crate::init::Init;
use crate::ops::{self, LinearOutput};

/// A layer that an adapter may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// The layer's reference name, such as `transformer_blocks.0.attn.to_q`.
    pub name: String,
    /// Width of its input.
    pub in_features: usize,
    /// Width of its output.
    pub out_features: usize,
}

/// A linear layer with a place in the model's list of projections.
#[derive(Module, Debug)]
pub struct LoraLinear {
    /// `[out, in]`
    pub weight: Param<Tensor<2>>,
    /// `[out]`
    pub bias: Param<Tensor<1>>,
    /// Index into the model's projections.
    slot: usize,
}

impl LoraLinear {
    /// x W^T + b, and with an adapter that targets this layer, + scale x A^T B^T.
    ///
    /// # Shapes
    /// * x: `[.., in]`
    /// * output: `[.., out]`
    pub fn forward<const D: usize>(
        &self,
        x: Tensor<D>,
        adapter: Option<&LoraAdapter>,
    ) -> Tensor<D> {
        self.output(x, adapter).into_tensor()
    }

    /// [`LoraLinear::forward`], for an op that adds the bias if it is missing.
    ///
    /// # Shapes
    /// As [`LoraLinear::forward`].
    pub(crate) fn output<const D: usize>(
        &self,
        x: Tensor<D>,
        adapter: Option<&LoraAdapter>,
    ) -> LinearOutput<D> {
        let pair = adapter.and_then(|adapter| Some((adapter.pair(self.slot)?, adapter.scale())));
        let bias = Some(self.bias.val());
        let Some((pair, scale)) = pair else {
            return ops::linear_output(x, self.weight.val(), bias);
        };
        // The factors stay f32 beside a half-precision base: the op takes both.
        let (a, b) = (pair.a.val(), pair.b.val());
        ops::lora_linear(x, self.weight.val(), bias, a, b, scale).into()
    }
}

/// Where a module is being built: its reference name, and the list of projections so far.
pub struct Scope<'a> {
    init: &'a Init,
    projections: &'a RefCell<Vec<Projection>>,
    path: String,
}

impl<'a> Scope<'a> {
    /// The root of a model; what is built below it appends to `projections`.
    pub fn root(init: &'a Init, projections: &'a RefCell<Vec<Projection>>) -> Self {
        Self {
            init,
            projections,
            path: String::new(),
        }
    }

    /// The child that the reference calls `name`.
    pub fn child(&self, name: &str) -> Self {
        Self {
            init: self.init,
            projections: self.projections,
            path: self.name(name),
        }
    }

    /// Where new parameters come from.
    pub fn init(&self) -> &'a Init {
        self.init
    }

    /// A linear layer called `name`, in the next slot.
    pub fn linear(&self, name: &str, in_features: usize, out_features: usize) -> LoraLinear {
        let mut projections = self.projections.borrow_mut();
        let slot = projections.len();
        projections.push(Projection {
            name: self.name(name),
            in_features,
            out_features,
        });
        LoraLinear {
            weight: self.init.fan_in([out_features, in_features]),
            bias: self.init.zeros([out_features]),
            slot,
        }
    }

    fn name(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }
}
