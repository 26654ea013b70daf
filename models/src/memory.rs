//! Device memory that is needed for long, and that which is not needed for now.

#[cfg(feature = "cube")]
use burn::backend::{Backend, DispatchDevice};
use burn::tensor::{Device, TensorData};
#[cfg(feature = "cube")]
use retouch_kernels::CubeBackend;

/// Whether a device, with autodiff or without, is the CPU, whose memory is the host's.
pub fn is_host(device: &Device) -> bool {
    device.clone().without_autodiff() == Device::flex()
}

/// Has what `upload` puts on a GPU lie in memory of its own size, for what stays as long as a model does: pages that all share
/// have gaps between large weights.
#[cfg_attr(not(feature = "cube"), allow(unused_variables))]
pub(crate) fn kept<T: Send>(
    device: &Device,
    data: TensorData,
    upload: impl Fn(TensorData) -> T + Send,
) -> T {
    // Burn's fusion has this for the thread that runs kernels; values come from the one that calls.
    #[cfg(feature = "cube")]
    if let DispatchDevice::Cube(device) = device.clone().without_autodiff().as_dispatch() {
        return CubeBackend::memory_persistent_allocations(device, data, upload);
    }
    upload(data)
}

/// Gives a device's memory that nothing uses any more back to whoever else wants it; waits for the device.
///
/// What a role needs again later it allocates again, which costs far less than to load a model.
pub fn release(device: &Device) {
    let device = device.clone().without_autodiff();
    // What was dropped is free once the device is past all that was queued before. An error of the device is no less
    // an error for whoever computes on it next.
    let _ = device.sync();
    device.memory_cleanup();
}
