//! Device memory that is not needed for now.

use burn::tensor::Device;

/// Whether a device, with autodiff or without, is the CPU, whose memory is the host's.
pub fn is_host(device: &Device) -> bool {
    device.clone().without_autodiff() == Device::flex()
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
