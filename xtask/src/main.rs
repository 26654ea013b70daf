//! Developer commands: `cargo xtask ci | tidy | gpu | nccl | s3 | tiny | sim | mutations | swarm | chaos`.
//!
//! This crate depends on nothing of the workspace, so that it builds in seconds and the checks can run cheapest first.

mod chaos;
mod chaos_command;
mod circles;
mod gpu;
mod mutations;
mod nccl;
mod s3;
mod tidy;
mod wheel;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  ci          every check: formatting, tidy, clippy with warnings as errors, GPU builds on the driver double and on wgpu,
              nccl, s3, all tests
  tidy        checks of the source tree that no lint makes: file length, leftovers, invariants A1 and A2,
              modules that import one another in circles
  gpu         the GPU path, proved without a GPU and measured on one: build, double, wgpu, pack, run; --help says more
  nccl        tests with NCCL's real library, which is fetched with pip unless $RETOUCH_NCCL names it; needs no GPU
  s3          tests of checkpoints at a URL against a real S3 server on loopback, which is installed with pip
  tiny        makes the tiny assets anew: dataset, editor, judge (two hours on two cores)
  sim         simulated runs of the coordinator with faults: --seeds N --workers M, --seed S tells the story of one,
              --schedule shows what asynchrony gains, --scale what an event costs
  mutations   bugs of one line each are put into the coordinator, and the simulator must find them
  swarm       2,000 workers over real sockets on one real coordinator: rates, latencies, memory, restart
  chaos       real runs with kills, stops, orders, full disks and wrong clocks must end with the bits of undisturbed
              ones: --seeds N, --seed S tells the story of one, --help says more";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("ci") => ci(),
        Some("tidy") => tidy::check(&root()),
        Some("gpu") => gpu::run(&root(), &arguments[1..]),
        Some("nccl") => nccl(),
        Some("s3") => s3(),
        Some("tiny") => tiny(&arguments[1..]),
        Some("sim") => simulate(&arguments[1..]),
        Some("mutations") => mutations::check(&root()),
        Some("swarm") => swarm(&arguments[1..]),
        Some("chaos") => chaos_command::run(&root(), &arguments[1..]),
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
    clippy()?;
    gpu::prove(&root())?;
    nccl()?;
    s3()?;
    parquet()?;
    cargo(&["test", "--workspace"])
}

/// Of all that any build has; what only builds without a feature have, the compiler sees when tests are built.
fn clippy() -> anyhow::Result<()> {
    gpu::llvm::provide(&root())?;
    let more = "retouch-coordinator/simulator,retouch-cli/parquet";
    let features = format!("{},{more}", gpu::build::FEATURES);
    let what = ["clippy", "--workspace", "--all-targets", "--features"];
    cargo(&[&what[..], &[&features, "--", "--deny", "warnings"]].concat())
}

fn nccl() -> anyhow::Result<()> {
    let library = nccl::library(&root())?;
    let build = ["test", "--workspace", "--features", "retouch-cli/nccl"];
    let tests = ["--lib", "--test", "nccl", "--", "nccl"];
    execute(
        cargo_command(&[&build[..], &tests].concat())
            .env(nccl::VARIABLE, library)
            .env("NCCL_SOCKET_IFNAME", "lo"),
    )
}

/// The import of parquet shards, alone: with its feature, whatever depends on the crate would be built a second time.
fn parquet() -> anyhow::Result<()> {
    let which = ["--package", "retouch-dataset", "--features", "parquet"];
    cargo(&[&["test"][..], &which, &["--", "import"]].concat())
}

fn s3() -> anyhow::Result<()> {
    let server = s3::Server::start(&root())?;
    let arguments = ["test", "--workspace", "--lib", "--", "archive"];
    execute(cargo_command(&arguments).envs(server.environment()))
}

fn simulate(options: &[String]) -> anyhow::Result<()> {
    let which = [
        "--release",
        "--package",
        "retouch-coordinator",
        "--features",
        "simulator",
        "--bin",
        "simulate",
    ];
    run(&which, options)
}

fn swarm(options: &[String]) -> anyhow::Result<()> {
    let which = ["--package", "retouch-coordinator", "--bench", "swarm"];
    cargo_with("bench", &which, options)
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
    cargo_with("run", which, options)
}

fn cargo_with(command: &str, which: &[&str], options: &[String]) -> anyhow::Result<()> {
    let mut command = vec![command];
    command.extend(which);
    command.push("--");
    command.extend(options.iter().map(String::as_str));
    cargo(&command)
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    execute(&mut cargo_command(arguments))
}

fn cargo_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(arguments).current_dir(root());
    // What cargo told this program of its own package: some build scripts would run again for it, and with them all that
    // is built on ring and burn.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    command
}

fn execute(command: &mut Command) -> anyhow::Result<()> {
    let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
    let line = format!("cargo {}", arguments.join(" "));
    println!("> {line}");
    let status = command.status();
    let status = status.with_context(|| format!("can't run {line}"))?;
    if !status.success() {
        bail!("{line} failed: {status}");
    }
    Ok(())
}

fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}
