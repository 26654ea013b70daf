//! What the diffusion transformers have in common: modulation by the conditioning, joint attention of text and
//! image tokens, feed-forward, and the embedding of time.

mod blocks;
mod feed_forward;
mod joint_attention;
mod modulation;
mod rotary;
mod stream;
mod timestep;

pub(crate) use blocks::{Blocks, Tokens, evaluate, slots_under, track};
pub(crate) use feed_forward::FeedForward;
pub(crate) use joint_attention::JointAttention;
pub(crate) use modulation::{AdaLayerNormContinuous, AdaLayerNormZero, EPS};
pub(crate) use rotary::{JointRotary, RotaryTable};
pub(crate) use stream::Stream;
pub(crate) use timestep::{TimestepEmbedding, sinusoids};
