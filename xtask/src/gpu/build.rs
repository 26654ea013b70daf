//! The build with both GPU backends, which serves the driver double, Mesa and real cards alike.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::llvm;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// What is built in the development profile, tests included. One selection for all: another, be it of targets alone, would have
/// the dependencies built again with other features.
const SELECTION: [&str; 18] = [
    "test",
    "--package",
    "retouch-kernels",
    "--package",
    "retouch-models",
    "--package",
    "retouch-learner",
    "--package",
    "retouch-cli",
    "--features",
    FEATURES,
    "--lib",
    "--bins",
    "--test",
    "parity",
    "--test",
    "checkpointing",
    "--no-run",
];
/// Both backends; `cuda` has NCCL with it.
pub(crate) const FEATURES: &str = "retouch-cli/cuda,retouch-cli/wgpu";

pub(crate) fn build(root: &Path, profile: Profile) -> anyhow::Result<()> {
    match profile {
        Profile::Dev => drop(Tests::build(root)?),
        Profile::Release => {
            llvm::provide(root)?;
            let what = ["build", "--package", "retouch-cli", "--release"];
            crate::cargo(&[&what[..], &["--features", "cuda,wgpu,parquet"]].concat())?;
        }
    }
    println!("built {}", binary(root, profile).display());
    Ok(())
}

/// The test programs of that build.
pub(crate) struct Tests {
    /// What cargo says of each that it built.
    messages: Vec<Value>,
}

impl Tests {
    pub(crate) fn build(root: &Path) -> anyhow::Result<Self> {
        llvm::provide(root)?;
        println!("> cargo {}", SELECTION.join(" "));
        let mut cargo = crate::cargo_command(&SELECTION);
        let output = cargo
            .args(["--message-format", "json-render-diagnostics"])
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(output.status.success(), "cargo test --no-run failed");
        let text = String::from_utf8(output.stdout)?;
        let messages = text.lines().map(serde_json::from_str);
        Ok(Self {
            messages: messages.collect::<Result<_, _>>()?,
        })
    }

    /// The program of the library or test `name`, and the folder that cargo runs it in.
    pub(crate) fn program(&self, name: &str, kind: &str) -> anyhow::Result<(PathBuf, PathBuf)> {
        for message in &self.messages {
            let target = &message["target"];
            let kinds = target["kind"].as_array().into_iter().flatten();
            let (program, manifest) = (&message["executable"], &message["manifest_path"]);
            if let (Some(program), Some(manifest)) = (program.as_str(), manifest.as_str())
                && target["name"] == name
                && kinds.into_iter().any(|found| found == kind)
            {
                let folder = Path::new(manifest).parent();
                let folder = folder.context("a manifest is in a folder")?;
                return Ok((program.into(), folder.to_owned()));
            }
        }
        bail!("cargo built no {kind} program of {name}")
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_name_and_kind() {
        let message = |name: &str, kind: &str, program: Option<&str>| {
            serde_json::json!({
                "target": {"name": name, "kind": [kind]}, "executable": program, "manifest_path": "/x/Cargo.toml",
            })
        };
        let tests = Tests {
            messages: vec![
                message("retouch_learner", "lib", None),
                message("retouch_learner", "bin", Some("/bin")),
                message("retouch_learner", "lib", Some("/lib")),
            ],
        };
        let found = tests
            .program("retouch_learner", "lib")
            .expect("it is there");
        assert_eq!(found, ("/lib".into(), "/x".into()));
        assert!(tests.program("parity", "test").is_err());
    }
}
