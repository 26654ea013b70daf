//! NCCL's real library, for what can be proved of it without a GPU.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::wheel;

/// The environment variable that names the library, for us as for `retouch`.
pub(crate) const VARIABLE: &str = "RETOUCH_NCCL";
/// The package of PyPI that carries the library.
const PACKAGE: &str = "nvidia-nccl-cu12==2.27.3";
const FILE_IN_PACKAGE: &str = "nvidia/nccl/lib/libnccl.so.2";

/// The library's file: the one in the environment, or the package's, fetched once.
pub(crate) fn library(root: &Path) -> anyhow::Result<PathBuf> {
    if let Some(file) = std::env::var_os(VARIABLE) {
        return Ok(file.into());
    }
    let library = wheel::file(&root.join("target/nccl"), PACKAGE, FILE_IN_PACKAGE);
    library.with_context(|| format!("name a libnccl.so.2 in ${VARIABLE} instead"))
}
