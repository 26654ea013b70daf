//! Low-rank adapters: trained instead of the base, and switched without copying it.
//!
//! A model lists its adaptable layers as [`Projection`]s; an adapter holds a pair of factors per
//! targeted one. The policy, the old policy and no adapter at all share one base.
//!
//! Adapters from elsewhere come in through [`AdapterFile`]: `format` takes the names of its tensors apart, `file` makes
//! layers of them, and `fit` finds the model's layers that they are.

mod adapter;
mod black_forest;
mod convert;
mod factors;
mod file;
mod fit;
mod format;
mod gradient;
mod interchange;
mod linear;
mod listed;
mod merge;
mod peft_config;
mod targets;
#[cfg(test)]
mod tests;
mod tracked;

pub use adapter::{LoraAdapter, LoraPair, flat_len, init_flat};
pub use convert::AdapterFormat;
pub use file::AdapterFile;
pub use gradient::LoraGradient;
pub use interchange::{load_adapter, name_base, save_diffusers, save_peft};
pub use linear::{LoraLinear, Projection, Scope};
pub(crate) use merge::{merge, merged};
pub use retouch_settings::{Checkpointing, LoraConfig};
pub use targets::{TargetError, check_targets};
pub use tracked::{Tracked, Trained};
