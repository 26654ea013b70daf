//! The build with both GPU backends, which serves the driver double, Mesa and real cards alike.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::ensure;

use super::llvm;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// What is built in the development profile, tests included: another selection of packages or targets would have the
/// dependencies built again with other features.
const SELECTION: [&str; 4] = [
    "test",
    "--workspace",
    "--features",
    "retouch-cli/cuda,retouch-cli/wgpu",
];
const TARGETS: [&str; 6] = [
    "--lib",
    "--bins",
    "--test",
    "parity",
    "--test",
    "checkpointing",
];

pub(crate) fn build(root: &Path, profile: Profile) -> anyhow::Result<()> {
    llvm::provide(root)?;
    match profile {
        Profile::Dev => crate::execute(&mut tests(&TARGETS, &["--no-run"]))?,
        Profile::Release => {
            let what = ["build", "--package", "retouch-cli", "--release"];
            crate::cargo(&[&what[..], &["--features", "cuda,wgpu"]].concat())?;
        }
    }
    println!("built {}", binary(root, profile).display());
    Ok(())
}

/// Tests of that build: those `targets` of it, with further `arguments` of cargo.
pub(crate) fn tests(targets: &[&str], arguments: &[&str]) -> Command {
    crate::cargo_command(&[&SELECTION[..], targets, arguments].concat())
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
