//! NCCL's functions, found when first needed.
//!
//! cudarc's own loader looks for `libnccl.so`, which only development packages have,
//! and panics where there is none: both are unfit for users, so only its types are used.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use cudarc::nccl::sys::{
    cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId,
};

use super::error::NcclError;

/// The environment variable that names the library's file.
pub(super) const VARIABLE: &str = "RETOUCH_NCCL";
/// The name under which the loader knows it.
const FILE: &str = "libnccl.so.2";
/// The first with the settings of [`Config`].
const VERSION_MIN: u32 = 21_700;
/// Marks a [`Config`].
const MAGIC: u32 = 0xcafe_beef;
/// "As NCCL sees fit."
const UNDEFINED: c_int = c_int::MIN;

/// NCCL's settings as of [`VERSION_MIN`], which later versions fill up by themselves.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    cga_cluster_size: c_int,
    ctas_min: c_int,
    ctas_max: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// Calls return at once, and [`Library::async_error`] tells how far they are.
    pub(super) fn without_blocking() -> Self {
        Self {
            size: size_of::<Self>(),
            magic: MAGIC,
            version: VERSION_MIN,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            ctas_min: UNDEFINED,
            ctas_max: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
type GetUniqueId = unsafe extern "C" fn(*mut ncclUniqueId) -> c_int;
type InitRank =
    unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut Config) -> c_int;
type AsyncError = unsafe extern "C" fn(ncclComm_t, *mut c_int) -> c_int;
type Abort = unsafe extern "C" fn(ncclComm_t) -> c_int;
type AllReduce = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    ncclDataType_t,
    ncclRedOp_t,
    ncclComm_t,
    cudaStream_t,
) -> c_int;
type Broadcast = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    ncclDataType_t,
    c_int,
    ncclComm_t,
    cudaStream_t,
) -> c_int;
type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
type LastError = unsafe extern "C" fn(ncclComm_t) -> *const c_char;

/// The loaded library. It is never unloaded: NCCL has threads of its own.
#[derive(Debug)]
pub(super) struct Library {
    /// As a number, 23007 for 2.30.7.
    pub(super) version: u32,
    pub(super) get_unique_id: GetUniqueId,
    pub(super) init_rank: InitRank,
    pub(super) async_error: AsyncError,
    pub(super) abort: Abort,
    pub(super) all_reduce: AllReduce,
    pub(super) broadcast: Broadcast,
    error_string: ErrorString,
    last_error: LastError,
}

impl Library {
    /// The library of this process.
    pub(super) fn get() -> Result<&'static Self, NcclError> {
        static LIBRARY: OnceLock<Result<Library, NcclError>> = OnceLock::new();
        let loaded = LIBRARY.get_or_init(|| {
            let file = std::env::var(VARIABLE).unwrap_or_else(|_| FILE.to_owned());
            Self::load(&file)
        });
        loaded.as_ref().map_err(Clone::clone)
    }

    pub(super) fn load(file: &str) -> Result<Self, NcclError> {
        let missing = |error: libloading::Error| {
            // The loader's own words, which name the file.
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            NcclError::NoLibrary {
                reason: cause.unwrap_or_else(|| format!("{file}: {error}")),
            }
        };
        // SAFETY: NCCL's initializers have no preconditions.
        let library = unsafe { libloading::Library::new(file) }.map_err(missing)?;
        let library: &'static libloading::Library = Box::leak(Box::new(library));
        // SAFETY: the signatures are those of nccl.h since 2.17, with the result as the
        // integer that it is, since later versions may return others.
        let found = unsafe {
            Self {
                version: version(
                    *library
                        .get::<GetVersion>("ncclGetVersion")
                        .map_err(missing)?,
                ),
                get_unique_id: *library.get("ncclGetUniqueId").map_err(missing)?,
                init_rank: *library.get("ncclCommInitRankConfig").map_err(missing)?,
                async_error: *library.get("ncclCommGetAsyncError").map_err(missing)?,
                abort: *library.get("ncclCommAbort").map_err(missing)?,
                all_reduce: *library.get("ncclAllReduce").map_err(missing)?,
                broadcast: *library.get("ncclBroadcast").map_err(missing)?,
                error_string: *library.get("ncclGetErrorString").map_err(missing)?,
                last_error: *library.get("ncclGetLastError").map_err(missing)?,
            }
        };
        if found.version < VERSION_MIN {
            return Err(NcclError::TooOld {
                found: found.version,
                oldest: VERSION_MIN,
            });
        }
        tracing::info!(version = found.version, file, "NCCL is loaded");
        Ok(found)
    }

    /// What a call's result means; `Ok(false)` is "still at it".
    pub(super) fn check(
        &self,
        call: &'static str,
        communicator: ncclComm_t,
        result: c_int,
    ) -> Result<bool, NcclError> {
        if result == ncclResult_t::ncclSuccess as c_int {
            return Ok(true);
        }
        if result == ncclResult_t::ncclInProgress as c_int {
            return Ok(false);
        }
        // SAFETY: both give static text, for every result and for no communicator too.
        let texts = unsafe { [(self.error_string)(result), (self.last_error)(communicator)] };
        let [kind, last] = texts.map(text);
        let reason = if last.is_empty() {
            kind
        } else {
            format!("{kind}: {last}")
        };
        Err(NcclError::Call { call, reason })
    }
}

/// The file that is mapped into this process: the loader looks in many places and says nothing.
pub(super) fn path() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut files = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]));
    files
        .find(|file| {
            Path::new(file)
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("libnccl"))
        })
        .map(PathBuf::from)
}

fn version(get_version: GetVersion) -> u32 {
    let mut version = 0;
    // SAFETY: it writes one integer.
    unsafe { get_version(&mut version) };
    version.unsigned_abs()
}

fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: NCCL's texts end with a zero.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().trim().to_owned()
}
