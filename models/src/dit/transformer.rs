use std::fmt::Debug;

use burn::tensor::{DType, Tensor};

use super::Evaluation;
use crate::lora::{self, LoraAdapter, Projection};
use crate::weights::Pretrained;

/// A network that predicts the velocity of noised latents under a condition.
pub trait Transformer: Pretrained {
    /// What an edit is conditioned on; a batch of one serves any number of samples.
    type Condition;
    /// What all evaluations under one condition share, computed once.
    type Context: Clone + Debug;

    /// The layers that an adapter may change, in the order of an adapter's slots.
    fn projections(&self) -> &[Projection];

    /// The float type of the weights.
    fn dtype(&self) -> DType;

    /// Computes what all evaluations under one condition share.
    ///
    /// # Panics
    /// If the condition lacks what the model takes, or its shapes do not fit.
    fn prepare(&self, condition: Self::Condition) -> Self::Context;

    /// The evaluation that gives the velocity of the first `kept` image tokens, at one time of each sample.
    ///
    /// # Shapes
    /// * hidden_states, noised tokens and then those of the sources: `[B, S, C]`
    /// * timestep in 0..1: `[B]`
    fn evaluation<'a>(
        &'a self,
        hidden_states: Tensor<3>,
        kept: usize,
        timestep: Tensor<1>,
        context: &'a Self::Context,
    ) -> Evaluation<'a>;

    /// The model with an adapter's products added to its weights; what is not targeted is shared.
    fn merged(&self, adapter: &LoraAdapter) -> Self {
        let names = Self::names(self.config());
        lora::merge(self.clone(), &names, self.projections(), adapter)
    }
}
