//! The `retouch` binary: one subcommand a file.
//!
//! Exit codes: 0 done; 1 the command failed; 2 the command line or a configuration is wrong, trying again is no use.

mod config;
mod control;
mod credentials;
mod dataset;
mod edit;
mod evaluate;
mod exit;
mod grpc;
mod launch;
mod report;
mod roles;
mod sft;
mod status;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Burn allocates and frees a large buffer for each tensor: with the system's allocator a third of the time is page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Reinforcement learning for instruction-based image editors, on one machine or a cluster.
#[derive(Debug, Parser)]
#[command(name = "retouch", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole training on this machine: every role a process, ending in a report.
    Launch(launch::LaunchArgs),
    /// Show what a run is doing.
    Status(status::StatusArgs),
    /// Give out no more work until `resume`; what runs is finished.
    Pause(control::ControlArgs),
    /// Give out work again.
    Resume(control::ControlArgs),
    /// Finish the open iteration, write a checkpoint and end the run.
    Drain(control::ControlArgs),
    /// End the run at its last committed iteration, with a checkpoint.
    Stop(control::ControlArgs),
    /// Edit one image by one instruction.
    Edit(edit::EditArgs),
    /// Compare an adapter with its base on held-out pairs.
    Evaluate(evaluate::EvaluateArgs),
    /// Train an editor by supervision: flow matching on pairs with targets.
    Sft(sft::SftArgs),
    /// Make or check a dataset folder.
    Dataset(dataset::DatasetArgs),
    /// Check a run file or show it with every default filled in.
    Config(config::ConfigCommand),
    /// Role: decide what is done next (one for a run).
    Coordinator(roles::CoordinatorArgs),
    /// Role: sample groups of edits.
    RolloutWorker(roles::WorkerArgs),
    /// Role: score groups with the judge.
    RewardWorker(roles::WorkerArgs),
    /// Role: train the adapter; one process is one rank.
    Learner(roles::WorkerArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error),
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Launch(args) => block_on(launch::run(args)),
        Command::Status(args) => block_on(status::run(args)),
        Command::Pause(args) => block_on(control::run(control::Command::Pause, args)),
        Command::Resume(args) => block_on(control::run(control::Command::Resume, args)),
        Command::Drain(args) => block_on(control::run(control::Command::Drain, args)),
        Command::Stop(args) => block_on(control::run(control::Command::Stop, args)),
        Command::Edit(args) => edit::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Sft(args) => sft::run(args),
        Command::Dataset(args) => dataset::run(args),
        Command::Config(command) => config::run(command),
        Command::Coordinator(args) => roles::coordinator(args),
        Command::RolloutWorker(args) => roles::rollout_worker(args),
        Command::RewardWorker(args) => roles::reward_worker(args),
        Command::Learner(args) => roles::learner(args),
    }
}

/// For commands that only wait: one thread is enough, and children die with it.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future)
}
