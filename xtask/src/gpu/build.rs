//! The build with both GPU backends, which serves the driver double, Mesa and real cards alike.

use std::path::{Path, PathBuf};

use anyhow::ensure;

use super::llvm;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

pub(crate) fn build(root: &Path, profile: Profile) -> anyhow::Result<()> {
    llvm::provide(root)?;
    let mut arguments = vec![
        "build",
        "--package",
        "retouch-cli",
        "--features",
        "cuda,wgpu",
    ];
    if profile == Profile::Release {
        arguments.push("--release");
    }
    crate::cargo(&arguments)?;
    println!("built {}", binary(root, profile).display());
    Ok(())
}

/// Build scripts of burn's CUDA backend provide LLVM, except for documentation: types can be checked without it. The folder of
/// its own keeps the features from rebuilding each other.
pub(crate) fn clippy() -> anyhow::Result<()> {
    let what = ["clippy", "--package", "retouch-cli", "--features", "cuda"];
    let folder = ["--target-dir", "target/cuda", "--", "--deny", "warnings"];
    crate::execute(crate::cargo_command(&[&what[..], &folder].concat()).env("DOCS_RS", "1"))
}

/// The program that [`build`] made.
pub(crate) fn built(root: &Path) -> anyhow::Result<PathBuf> {
    let binary = binary(root, Profile::Dev);
    ensure!(
        binary.is_file(),
        "{} is not there: cargo xtask gpu build",
        binary.display()
    );
    Ok(binary)
}

pub(crate) fn binary(root: &Path, profile: Profile) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| root.join("target"), |folder| root.join(folder));
    target.join(match profile {
        Profile::Dev => "debug/retouch",
        Profile::Release => "release/retouch",
    })
}
