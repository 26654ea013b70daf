//! Settings that run files name and models compute with.
//!
//! They stand here, below both, so that neither the run file's schema (`proto`) depends on models nor models on the
//! network. [`choice!`] makes an enum of names; [`DeviceName`] says where a process computes; [`LoraConfig`] describes an
//! adapter.

mod choice;
mod device;
mod lora;

pub use choice::UnknownChoice;
pub use device::{DeviceName, UnknownDevice};
pub use lora::LoraConfig;

choice! {
    /// The number type that weights are stored and multiplied in.
    Dtype {
        /// 32-bit floats.
        F32 = "f32",
        /// bfloat16; adapters and optimizer state stay f32.
        Bf16 = "bf16",
    }
}

choice! {
    /// Solvers of the probability-flow ODE of flow matching.
    Solver {
        /// Straight along the velocity.
        Euler = "euler",
        /// To the next mixture of the predicted image and the predicted noise; first order in data prediction.
        Ddim = "ddim",
        /// DPM-Solver++, first order.
        Dpm1 = "dpm1",
        /// DPM-Solver++, second-order multistep, midpoint form.
        Dpm2 = "dpm2",
    }
}

choice! {
    /// Activation checkpointing: what a forward pass keeps for the backward pass.
    Checkpointing {
        /// Everything that gradients need: nothing is computed twice, and memory grows with the depth of the model.
        None = "none",
        /// The input of each transformer block: a block is computed again on the way back, so that no graph is deeper
        /// than one block.
        Block = "block",
    }
}
