use std::fmt;

use burn::tensor::{Gradients, Tensor};

use super::{Checkpointing, LoraAdapter, LoraGradient};

/// An adapter that is being trained.
#[derive(Debug, Clone, Copy)]
pub struct Trained<'a> {
    /// On an autodiff device.
    pub adapter: &'a LoraAdapter,
    /// What its forward passes keep.
    pub checkpointing: Checkpointing,
}

/// A prediction of a trained adapter, and the way from it back to the factors.
pub struct Tracked<'a> {
    output: Tensor<3>,
    back: Back<'a>,
}

/// From the gradients of a loss of the output to the gradient of the adapter.
type Back<'a> = Box<dyn FnOnce(&Gradients) -> LoraGradient<'a> + 'a>;

impl<'a> Tracked<'a> {
    /// An output whose graph reaches back to the factors themselves.
    pub fn whole(output: Tensor<3>, adapter: &'a LoraAdapter) -> Self {
        Self::new(output, move |gradients| {
            LoraGradient::new(adapter, gradients)
        })
    }

    /// An output from which `back` finds the way.
    pub(crate) fn new(
        output: Tensor<3>,
        back: impl FnOnce(&Gradients) -> LoraGradient<'a> + 'a,
    ) -> Self {
        Self {
            output,
            back: Box::new(back),
        }
    }

    /// A function of the output in its place.
    pub fn map(self, function: impl FnOnce(Tensor<3>) -> Tensor<3>) -> Self {
        Self {
            output: function(self.output),
            back: self.back,
        }
    }

    /// The output, on an autodiff device; a loss is to be made of it.
    pub fn output(&self) -> Tensor<3> {
        self.output.clone()
    }

    /// The gradient of the adapter, given those of a loss of the output.
    pub fn gradient(self, gradients: &Gradients) -> LoraGradient<'a> {
        let Self { output, back } = self;
        drop(output);
        back(gradients).merged()
    }
}

impl fmt::Debug for Tracked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked")
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}
