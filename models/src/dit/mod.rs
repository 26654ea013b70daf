//! What the diffusion transformers have in common: modulation by the conditioning, joint attention of text and
//! image tokens, feed-forward, the embedding of time, and how a stack of blocks is run.

mod blocks;
mod feed_forward;
mod joint_attention;
mod modulation;
mod rotary;
mod stream;
mod timestep;
mod transformer;

pub use blocks::Evaluation;
pub(crate) use blocks::{Blocks, Tokens, slots_under};
pub(crate) use feed_forward::FeedForward;
pub(crate) use joint_attention::JointAttention;
pub(crate) use modulation::{AdaLayerNormContinuous, AdaLayerNormZero, EPS};
pub(crate) use rotary::{JointRotary, RotaryTable};
pub(crate) use stream::{Stream, kept_tokens};
pub(crate) use timestep::{TimestepEmbedding, sinusoids};
pub use transformer::Transformer;
