//! Named tensors on disk, and how modules take theirs from them.
//!
//! A published checkpoint is a folder with `config.json` and one `*.safetensors` file, or several
//! with an index. Modules name their fields as the reference does, so a parameter's path in the
//! module is nearly its key in the file; a [`Names`] table per component tells the few
//! differences. Loading reports every name that does not fit at once.

mod element;
mod error;
mod file;
mod fold;
mod folder;
pub(crate) mod foreign;
mod json;
mod load;
mod locate;
mod names;
mod part;
mod pretrained;
mod put;
mod quantised;
mod save;
mod table;
#[cfg(test)]
mod tests;

pub use error::{LoadError, Misfit, Misshaped, Mistyped};
pub use file::{DIFFUSERS_FILE, TRANSFORMERS_FILE, Weights};
pub(crate) use fold::folded;
pub(crate) use folder::{require_file, seems};
pub(crate) use json::{Spelled, Spellings, class_of, read_text, without_byte_order_mark};
pub use json::{read_config, write_config};
pub use names::Names;
pub use pretrained::{Pretrained, PretrainedConfig};
pub(crate) use put::put_folder;
pub use save::{TensorMap, tensors_of, to_safetensors, write_safetensors};
pub use table::Table;
