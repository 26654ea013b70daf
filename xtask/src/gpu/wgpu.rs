//! Ops, golden cases and whole runs on burn's `wgpu`, with Mesa's Vulkan on the CPU: a second backend that computes.

use std::{path::Path, process::Command};

use anyhow::{Context, ensure};

use super::{build, mesa::Mesa};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Kernels and ops.
    Kernels,
    /// Golden cases and training by block, too: hours, most of them of tuning.
    All,
}

pub(crate) fn check(root: &Path, extent: Extent) -> anyhow::Result<()> {
    let mesa = Mesa::get(root)?;
    // Of the whole workspace each time: a part of it would have its dependencies built with other features.
    let test = [
        "test",
        "--workspace",
        "--features",
        "retouch-cli/cuda,retouch-cli/wgpu",
    ];
    let device = ["--lib", "--", "device_tests::", "ops::tests::"];
    cargo(&mesa, &[&test[..], &device].concat())?;
    if extent == Extent::Kernels {
        return Ok(());
    }
    cargo(
        &mesa,
        &[&test[..], &["--test", "parity", "--test", "checkpointing"]].concat(),
    )
}

/// The smoke run with all roles on `wgpu`.
pub(crate) fn smoke(root: &Path) -> anyhow::Result<()> {
    let mut arguments = vec![
        "launch",
        "examples/smoke.toml",
        "--set",
        "run_dir=target/gpu/wgpu-smoke",
    ];
    for device in [
        "model.device=wgpu",
        "learner.device=wgpu",
        "reward.device=wgpu",
    ] {
        arguments.extend(["--set", device]);
    }
    let folder = root.join("target/gpu/wgpu-smoke");
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    command(root, &[&["retouch"], &arguments[..]].concat())
}

pub(crate) fn command(root: &Path, program: &[&str]) -> anyhow::Result<()> {
    let (name, arguments) = program
        .split_first()
        .context("wgpu needs a program to run")?;
    let name = match *name {
        "retouch" => build::built(root)?,
        other => other.into(),
    };
    let mut command = Command::new(&name);
    command.args(arguments).envs(Mesa::get(root)?.environment());
    let status = command
        .status()
        .with_context(|| format!("can't run {}", name.display()))?;
    ensure!(status.success(), "the program failed: {status}");
    Ok(())
}

fn cargo(mesa: &Mesa, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = crate::cargo_command(arguments);
    command
        .envs(mesa.environment())
        .env("RETOUCH_TEST_DEVICE", "wgpu");
    crate::execute(&mut command)
}
