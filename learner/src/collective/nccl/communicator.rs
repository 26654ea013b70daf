//! One epoch's use of NCCL. Calls return at once.

use std::{
    ffi::{c_int, c_void},
    sync::mpsc,
    time::Duration,
};

use cudarc::{
    driver::{CudaStream, sys::CUdeviceptr},
    nccl::sys::{ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId},
};
use retouch_proto::task::UniqueId;

use super::{
    error::NcclError,
    library::{Config, Library},
};

/// How long NCCL may take to end what is under way.
const ABORT_MAX: Duration = Duration::from_secs(20);

/// This rank's end of NCCL.
#[derive(Debug)]
pub(super) struct Communicator {
    library: &'static Library,
    /// Null once it was aborted.
    raw: ncclComm_t,
}

// SAFETY: a communicator may be used by any thread, one at a time, which `&mut` and the
// lack of `Sync` ensure.
unsafe impl Send for Communicator {}

/// A communicator on its way to the thread that aborts it.
struct Raw(ncclComm_t);

// SAFETY: a communicator may be aborted by any thread.
unsafe impl Send for Raw {}

/// f32 in a device's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    pub(super) pointer: CUdeviceptr,
    pub(super) elements: usize,
}

/// Has NCCL listen for the ranks of a new communicator and gives what they need to find it.
pub(super) fn mint(library: &Library) -> Result<UniqueId, NcclError> {
    let mut id = ncclUniqueId {
        internal: [0; UniqueId::BYTES],
    };
    // SAFETY: it writes the id.
    let result = unsafe { (library.get_unique_id)(&mut id) };
    library.check("ncclGetUniqueId", std::ptr::null_mut(), result)?;
    Ok(UniqueId(id.internal.map(|byte| byte as u8)))
}

impl Communicator {
    /// Begins to meet the other ranks, on the device that is current in this thread.
    pub(super) fn start(
        library: &'static Library,
        id: &UniqueId,
        rank: usize,
        world: usize,
    ) -> Result<Self, NcclError> {
        let id = ncclUniqueId {
            internal: id.0.map(|byte| byte as _),
        };
        let mut this = Self {
            library,
            raw: std::ptr::null_mut(),
        };
        let mut config = Config::without_blocking();
        // SAFETY: it writes the communicator and reads the settings during the call.
        let result = unsafe {
            (library.init_rank)(
                &mut this.raw,
                world as c_int,
                id,
                rank as c_int,
                &mut config,
            )
        };
        library.check("ncclCommInitRankConfig", this.raw, result)?;
        Ok(this)
    }

    /// Whether NCCL has begun all that it was given; errors of its threads come out here.
    pub(super) fn is_ready(&self) -> Result<bool, NcclError> {
        let mut state = 0;
        // SAFETY: the communicator lives, and one integer is written.
        let result = unsafe { (self.library.async_error)(self.raw, &mut state) };
        self.check("ncclCommGetAsyncError", result)?;
        self.check("NCCL", state)
    }

    /// Replaces the elements by their sum over ranks.
    ///
    /// # Safety
    ///
    /// The buffer must be valid on the stream's device, and be used by nobody else until
    /// the stream has come past this or the communicator is aborted.
    pub(super) unsafe fn all_reduce(
        &self,
        buffer: Buffer,
        stream: &CudaStream,
    ) -> Result<(), NcclError> {
        let pointer = buffer.pointer as *mut c_void;
        // SAFETY: NCCL takes one pointer twice as "in place"; the rest is the caller's.
        let result = unsafe {
            (self.library.all_reduce)(
                pointer,
                pointer,
                buffer.elements,
                ncclDataType_t::ncclFloat32,
                ncclRedOp_t::ncclSum,
                self.raw,
                stream.cu_stream().cast(),
            )
        };
        self.check("ncclAllReduce", result).map(drop)
    }

    /// Replaces the elements by those of rank `root`.
    ///
    /// # Safety
    ///
    /// As [`all_reduce`](Self::all_reduce).
    pub(super) unsafe fn broadcast(
        &self,
        buffer: Buffer,
        root: usize,
        stream: &CudaStream,
    ) -> Result<(), NcclError> {
        let pointer = buffer.pointer as *mut c_void;
        // SAFETY: as in `all_reduce`.
        let result = unsafe {
            (self.library.broadcast)(
                pointer,
                pointer,
                buffer.elements,
                ncclDataType_t::ncclFloat32,
                root as c_int,
                self.raw,
                stream.cu_stream().cast(),
            )
        };
        self.check("ncclBroadcast", result).map(drop)
    }

    /// Ends everything under way and frees the communicator. Later calls do nothing.
    ///
    /// NCCL waits for its own threads meanwhile: where they hang, it is left alone with them after a while.
    pub(super) fn abort(&mut self) {
        let raw = Raw(std::mem::replace(&mut self.raw, std::ptr::null_mut()));
        if raw.0.is_null() {
            return;
        }
        let (library, (done, is_done)) = (self.library, mpsc::channel());
        let abort = move || {
            // The whole of it goes to the thread, not only the pointer in it.
            let raw = raw;
            // SAFETY: the communicator lives, and nobody else has it any more.
            let result = unsafe { (library.abort)(raw.0) };
            let _ = done.send(library.check("ncclCommAbort", std::ptr::null_mut(), result));
        };
        let started = std::thread::Builder::new()
            .name("nccl-abort".into())
            .spawn(abort);
        let aborted = started.map(|_| is_done.recv_timeout(ABORT_MAX));
        match aborted {
            Ok(Ok(Ok(_))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "NCCL was left as it is"),
            Ok(Err(_)) => {
                tracing::warn!("NCCL did not abort within {ABORT_MAX:?} and was left as it is")
            }
            Err(error) => tracing::warn!(%error, "no thread to abort NCCL in"),
        }
    }

    fn check(&self, call: &'static str, result: c_int) -> Result<bool, NcclError> {
        self.library.check(call, self.raw, result)
    }
}

impl Drop for Communicator {
    /// Aborting is the one way to free it that never waits for a rank that is gone.
    fn drop(&mut self) {
        self.abort();
    }
}
