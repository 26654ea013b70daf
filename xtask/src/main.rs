//! Developer commands: `cargo xtask ci | tidy | tiny | sim | mutations | swarm`.
//!
//! This crate depends on nothing of the workspace, so that it builds in seconds and the checks can run cheapest first.

mod mutations;
mod tidy;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  ci          every check, cheapest first: formatting, tidy, clippy with warnings as errors, all tests
  tidy        checks of the source tree that no lint makes: file length, leftovers, invariants A1 and A2
  tiny        makes the tiny assets anew: dataset, editor, judge (about an hour on two cores)
  sim         simulated runs of the coordinator with faults: --seeds N --workers M, --seed S tells the story of one,
              --schedule shows what asynchrony gains, --scale what an event costs
  mutations   ten bugs of one line each are put into the coordinator, and the simulator must find them
  swarm       2,000 workers over real sockets on one real coordinator: rates, latencies, memory, restart";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("ci") => ci(),
        Some("tidy") => tidy::check(&root()),
        Some("tiny") => tiny(&arguments[1..]),
        Some("sim") => development("simulate", &arguments[1..]),
        Some("mutations") => mutations::check(&root()),
        Some("swarm") => development("swarm", &arguments[1..]),
        Some("help" | "--help" | "-h") => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("unknown command {:?}\n{USAGE}", other.unwrap_or("(none)")),
    }
}

/// The README's test command is the last step, so that what CI runs is what users run.
fn ci() -> anyhow::Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    tidy::check(&root())?;
    cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ])?;
    cargo(&["test", "--workspace"])
}

/// One of the coordinator's development programs, optimised.
fn development(name: &str, options: &[String]) -> anyhow::Result<()> {
    let which = [
        "--release",
        "--package",
        "retouch-coordinator",
        "--features",
        "simulator",
        "--bin",
        name,
    ];
    run(&which, options)
}

fn tiny(options: &[String]) -> anyhow::Result<()> {
    run(
        &[
            "--release",
            "--package",
            "retouch-tiny",
            "--bin",
            "make-tiny-assets",
        ],
        options,
    )
}

/// Runs a program of the workspace.
fn run(which: &[&str], options: &[String]) -> anyhow::Result<()> {
    let mut command = vec!["run"];
    command.extend(which);
    command.push("--");
    command.extend(options.iter().map(String::as_str));
    cargo(&command)
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    println!("> cargo {}", arguments.join(" "));
    let status = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(root())
        .status()
        .with_context(|| format!("can't run cargo {}", arguments.join(" ")))?;
    if !status.success() {
        bail!("cargo {} failed: {status}", arguments.join(" "));
    }
    Ok(())
}

fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}
