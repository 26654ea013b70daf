//! Ops, golden cases and whole runs on burn's `wgpu`, with Mesa's Vulkan on the CPU: a second backend that computes.

use std::{path::Path, process::Command};

use anyhow::{Context, ensure};

use super::{
    build::{self, Tests},
    mesa::Mesa,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Kernels, ops, and a golden case of each kind of network and of the NFT step.
    Some,
    /// All golden cases and training by block, too.
    All,
}

const GOLDEN: &str = "every_case_agrees_with_its_reference";
/// Parts of the names of the cases that go with [`Extent::Some`].
const CASES: &str = "autoencoder_kl__flux_two,clip_text__quick,flux_transformer__guidance,lora_linear__rank,nft_step__published,\
                     qwen_image_transformer__padded_text,t5_encoder__gated";

pub(crate) fn check(root: &Path, extent: Extent) -> anyhow::Result<()> {
    let mesa = Mesa::get(root)?;
    let tests = Tests::build(root)?;
    let run = |name, kind, filter: &[&str], cases| {
        let (program, folder) = tests.program(name, kind)?;
        println!("> {} {}", program.display(), filter.join(" "));
        let mut command = Command::new(program);
        command.args(filter).current_dir(folder);
        command.envs(mesa.environment());
        command.env("RETOUCH_TEST_DEVICE", "wgpu");
        command.env("RETOUCH_PARITY_ONLY", cases);
        let status = command.status()?;
        ensure!(status.success(), "tests of {name} failed on wgpu: {status}");
        anyhow::Ok(())
    };
    run("retouch_kernels", "lib", &[], "")?;
    run("retouch_models", "lib", &["ops::tests::"], "")?;
    match extent {
        Extent::Some => run("parity", "test", &[GOLDEN, "--nocapture"], CASES),
        Extent::All => {
            run("parity", "test", &[GOLDEN, "--nocapture"], "")?;
            run("checkpointing", "test", &[], "")
        }
    }
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
