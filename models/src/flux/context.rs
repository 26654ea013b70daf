use burn::tensor::Tensor;

use super::rotary::Rotary;

/// What an edit is conditioned on; a batch of one serves any number of samples.
#[derive(Debug, Clone)]
pub struct FluxCondition {
    /// Text tokens: `[B or 1, T, J]`
    pub encoder_hidden_states: Tensor<3>,
    /// Pooled text: `[B or 1, P]`
    pub pooled_projections: Tensor<2>,
    /// Guidance scale, where the model takes one: `[B or 1]`
    pub guidance: Option<Tensor<1>>,
    /// Positions of the image tokens: `[S, axes]`
    pub img_ids: Tensor<2>,
    /// Positions of the text tokens: `[T, axes]`
    pub txt_ids: Tensor<2>,
}

/// What all steps of one condition share, computed once.
#[derive(Debug, Clone)]
pub struct FluxContext {
    /// Embedded text tokens: `[B or 1, T, D]`
    pub(super) context: Tensor<3>,
    /// The conditioning's part that does not depend on time: `[B or 1, D]`
    pub(super) fixed: Tensor<2>,
    pub(super) rotary: Rotary,
}
