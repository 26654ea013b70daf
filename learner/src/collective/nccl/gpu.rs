//! A rank's GPU: a stream of our own and the one flat buffer that gradients are summed in.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaSlice, CudaStream, DevicePtr, DriverError, sys};

use super::{communicator::Buffer, error::NcclError};

/// What is asked of the driver first.
pub(super) const OPENING: &str = "opening the device";

/// The device and the buffer.
#[derive(Debug)]
pub(super) struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// None before the first operation.
    flat: Option<CudaSlice<f32>>,
}

/// How many GPUs there are; none without a driver.
#[cfg(test)]
pub(super) fn count() -> usize {
    if !has_driver() {
        return 0;
    }
    CudaContext::device_count().unwrap_or(0).max(0) as usize
}

impl Gpu {
    /// Takes the device's primary context, which is that of the model's tensors too.
    pub(super) fn open(index: usize) -> Result<Self, NcclError> {
        if !has_driver() {
            return Err(NcclError::NoDriver);
        }
        let context = CudaContext::new(index).map_err(on(OPENING))?;
        let stream = context.new_stream().map_err(on("making a stream"))?;
        Ok(Self {
            context,
            stream,
            flat: None,
        })
    }

    pub(super) fn index(&self) -> usize {
        self.context.ordinal()
    }

    /// What no other card has, whatever number it goes by.
    pub(super) fn identity(&self) -> Result<[u8; 16], NcclError> {
        let uuid = self.context.uuid().map_err(on("asking for its identity"))?;
        Ok(uuid.bytes.map(|byte| byte as u8))
    }

    pub(super) fn stream(&self) -> &CudaStream {
        &self.stream
    }

    /// Makes the device current in this thread, to which NCCL's work belongs then.
    pub(super) fn enter(&self) -> Result<(), NcclError> {
        self.context
            .bind_to_thread()
            .map_err(on("taking the device"))
    }

    /// Puts values into the buffer.
    pub(super) fn upload(&mut self, values: &[f32]) -> Result<Buffer, NcclError> {
        self.enter()?;
        let mut flat = match self.flat.take().filter(|flat| flat.len() == values.len()) {
            Some(flat) => flat,
            None => (self.stream.alloc_zeros(values.len()))
                .map_err(on("allocating the gradient buffer"))?,
        };
        self.stream
            .memcpy_htod(values, &mut flat)
            .map_err(on("copying gradients to the device"))?;
        let (pointer, elements) = (flat.device_ptr(&self.stream).0, flat.len());
        self.flat = Some(flat);
        Ok(Buffer { pointer, elements })
    }

    /// Takes the buffer's values.
    pub(super) fn download(&self, values: &mut [f32]) -> Result<(), NcclError> {
        let Some(flat) = &self.flat else {
            return Ok(());
        };
        self.stream
            .memcpy_dtoh(flat, values)
            .and_then(|()| self.stream.synchronize())
            .map_err(on("copying gradients from the device"))
    }

    /// Marks the end of what the stream was given so far.
    pub(super) fn mark(&self) -> Result<CudaEvent, NcclError> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        self.stream
            .record_event(Some(flags))
            .map_err(on("marking the stream"))
    }
}

/// Whether a stream has come past a mark.
pub(super) fn is_past(mark: &CudaEvent) -> Result<bool, NcclError> {
    mark.try_is_complete().map_err(on("work on the device"))
}

fn has_driver() -> bool {
    // SAFETY: the driver's initializers have no preconditions.
    unsafe { sys::is_culib_present() }
}

fn on(what: &'static str) -> impl Fn(DriverError) -> NcclError {
    move |error| NcclError::Cuda {
        what,
        reason: error.to_string(),
    }
}
