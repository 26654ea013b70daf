//! What a model folder holds and what its roles will need and compute, without loading it.
//!
//! Weight files are opened for their headers only, and the names and shapes that they should have come
//! from the modules themselves, as the loaders' do, so that nothing of a model's size is allocated.

mod classes;
mod component;
mod editor_effort;
mod editor_memory;
mod effort;
mod folder;
mod gpu;
mod judge;
mod learner_memory;
mod memory;
#[cfg(test)]
mod tests;

pub use component::{Component, Tensors};
pub use effort::{Effort, EffortLine, Unit};
pub use folder::{FolderKind, Inspection, inspect};
pub use memory::{Estimate, Guidance, MemoryLine, Reference, Role, Workload, estimate};
