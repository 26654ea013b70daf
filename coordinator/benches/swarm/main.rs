//! Load for a real coordinator: `cargo xtask swarm` calls this.
//!
//! The coordinator is a process of its own, with its record on disk; the workers are sessions over real sockets on
//! loopback that work as fast as they are told to; the blobs that they say they hold have no bytes.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/dataset.rs"]
mod dataset;
mod latencies;
mod load;
mod process;
mod session_grpc;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use retouch_coordinator::{Admission, CoordinatorOptions, serve};
use retouch_proto::RunConfig;

use self::load::Load;

const USAGE: &str = "\
usage: swarm [SESSIONS [RATE [SECONDS]]]
  opens SESSIONS workers (2000) on one coordinator, has it give out RATE tasks per second (400) for SECONDS (30), kills and
  restarts it, then raises the rate until it is not held any more";

fn main() -> ExitCode {
    // cargo tells every benchmark that it is one.
    let arguments = std::env::args().skip(1).filter(|text| text != "--bench");
    let arguments: Vec<String> = arguments.collect();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("no runtime: {error}")),
    };
    let ended = match arguments.split_first() {
        Some((first, rest)) if first == "coordinator" => runtime.block_on(coordinator(rest)),
        _ => match Load::parse(&arguments) {
            Some(load) => runtime.block_on(load.run()),
            None => Err(USAGE.to_owned()),
        },
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => failed(&problem),
    }
}

fn failed(problem: &str) -> ExitCode {
    eprintln!("{problem}");
    ExitCode::FAILURE
}

/// The coordinator's process: folder and address.
async fn coordinator(arguments: &[String]) -> Result<(), String> {
    let [folder] = arguments else {
        return Err(USAGE.to_owned());
    };
    let folder = Path::new(folder);
    let listen = "127.0.0.1:0".parse().map_err(|error| format!("{error}"))?;
    let (config, run_dir) = (config(folder), folder.to_owned());
    let options = CoordinatorOptions::new(config, run_dir, listen, Admission::Open);
    serve(options)
        .await
        .map(drop)
        .map_err(|error| error.to_string())
}

/// A run whose next iterations are open while one is finished.
fn config(folder: &Path) -> RunConfig {
    let mut config = common::config(1_024);
    config.dataset.path = folder.join("dataset").display().to_string();
    config.rollout.staleness_max = 8;
    // Its learner writes no files, and a restarted coordinator looks for those of recorded checkpoints.
    config.learner.checkpoint_every = 1_000_000;
    config
}

/// This program, to be started again as the coordinator.
fn own_path() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| format!("no path of this program: {error}"))
}
