//! What a model folder holds and what its roles will need, without loading it.
//!
//! Weight files are opened for their headers only, and the names and shapes that they should have come
//! from the modules themselves, as the loaders' do, so that nothing of a model's size is allocated.

mod classes;
mod component;
mod editor_memory;
mod folder;
mod judge_memory;
mod learner_memory;
mod memory;
#[cfg(test)]
mod tests;

pub use component::{Component, Tensors};
pub use folder::{FolderKind, Inspection, inspect};
pub use memory::{Estimate, MemoryLine, Role, Workload, estimate};
