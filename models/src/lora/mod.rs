//! Low-rank adapters: trained instead of the base, and switched without copying it.
//!
//! A model lists its adaptable layers as [`Projection`]s; an adapter holds a pair of factors per
//! targeted one. The policy, the old policy and no adapter at all share one base.

mod adapter;
mod factors;
mod gradient;
mod interchange;
mod linear;
mod merge;
mod peft_config;
#[cfg(test)]
mod tests;
mod tracked;

pub use adapter::{LoraAdapter, LoraPair, flat_len, init_flat};
pub use gradient::LoraGradient;
pub use interchange::{load_adapter, load_diffusers, load_peft, save_diffusers, save_peft};
pub use linear::{LoraLinear, Projection, Scope};
pub(crate) use merge::merge;
pub use retouch_settings::{Checkpointing, LoraConfig};
pub use tracked::{Tracked, Trained};
