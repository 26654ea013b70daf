//! NCCL's real library, for what can be proved of it without a GPU.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

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
    let folder = root.join("target/nccl");
    let file = folder.join(FILE_IN_PACKAGE);
    if !file.is_file() {
        fetch(&folder).with_context(|| {
            format!("can't fetch {PACKAGE}; name a libnccl.so.2 in ${VARIABLE} instead")
        })?;
    }
    Ok(file)
}

fn fetch(folder: &Path) -> anyhow::Result<()> {
    let destination = folder.to_str().context("the path is no text")?;
    let options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--dest"];
    let mut download = vec!["-m", "pip", "download"];
    download.extend(options);
    download.extend([destination, PACKAGE]);
    python(&download)?;
    let entries = std::fs::read_dir(folder)?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let wheel = paths.find(|path| path.extension().is_some_and(|end| end == "whl"));
    let wheel = wheel.context("pip brought no wheel")?;
    let name = wheel.to_str().context("the path is no text")?;
    python(&["-m", "zipfile", "-e", name, destination])?;
    Ok(std::fs::remove_file(wheel)?)
}

fn python(arguments: &[&str]) -> anyhow::Result<()> {
    println!("> python3 {}", arguments.join(" "));
    let status = Command::new("python3").args(arguments).status();
    let status = status.context("can't run python3")?;
    if !status.success() {
        bail!("python3 {} failed: {status}", arguments.join(" "));
    }
    Ok(())
}
