//! The memory of a tensor on a card, for a library that works on it where it is.

use burn::backend::Cube;
use burn::tensor::{DType, Tensor};
use cubecl::cuda::CudaRuntime;
use cubecl::future::block_on;
use cubecl_runtime::runtime::Runtime;
use retouch_kernels::CubeBackend;

type Server = <CudaRuntime as Runtime>::Server;

/// Values in a card's memory, in its primary context.
#[derive(Debug, Clone, Copy)]
pub struct CardMemory {
    /// Where the first one is.
    pub pointer: u64,
    /// Their number.
    pub elements: usize,
}

/// A tensor's values can't be had where they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotInPlace {
    /// They are not f32 on a card, or not one after the other.
    #[error("the tensor has no flat f32 memory on a card")]
    Elsewhere,
    /// The backend failed.
    #[error("the device failed: {0}")]
    Device(String),
}

/// Lets `work` read and change the values of a tensor in place, once all that was to be computed is computed.
///
/// The backend has a stream of its own: `work` must be done with the memory, on whatever stream it uses, when it returns.
/// The tensor must be the only one on its memory, as the result of an op is.
///
/// # Shapes
/// - flat: `[len]`, f32
///
/// # Errors
/// If the memory can't be had; `work` is not called then.
pub fn in_place<T>(flat: &Tensor<1>, work: impl FnOnce(CardMemory) -> T) -> Result<T, NotInPlace> {
    let device = |error: &dyn std::fmt::Debug| NotInPlace::Device(format!("{error:?}"));
    let [elements] = flat.dims();
    let promise = flat.clone().try_into_primitive::<Cube>();
    let promise = promise.map_err(|_| NotInPlace::Elsewhere)?;
    let client = promise.client.clone();
    let tensor = client.resolve_tensor_float::<CubeBackend>(promise);
    let is_flat = tensor.meta.strides().last() == Some(&1);
    if !is_flat || flat.dtype() != DType::F32 {
        return Err(NotInPlace::Elsewhere);
    }
    block_on(tensor.client.sync()).map_err(|error| device(&error))?;
    // As long as it is held, the memory is neither freed nor moved.
    let held = tensor.client.get_resource::<Server>(tensor.handle.clone());
    let held = held.map_err(|error| device(&error))?;
    let pointer = held.resource().ptr;
    let done = work(CardMemory { pointer, elements });
    drop(held);
    Ok(done)
}
