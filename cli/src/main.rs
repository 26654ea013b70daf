//! The `retouch` binary: one file per command, all of the same shape (arguments, then `run`), and shared code beside them.
//!
//! [`control`] has the commands that see or steer a run through its coordinator; [`exit`] has the exit codes.

// Commands.
mod completions;
mod config;
mod control;
mod dataset;
mod devices;
mod edit;
mod evaluate;
mod join;
mod launch;
mod lora;
mod model;
mod node;
mod report;
mod roles;
mod samples;
mod sft;
mod warm;

// Shared by several: how a process runs and proves who it is,
mod credentials;
mod exit;
mod memory;
mod role_name;
mod room;
mod runtime;

// evaluation,
mod evaluating;
mod heldout;
mod initial;
mod totals;

// what comes in and where results go,
mod destination;
mod number;

// and printing.
mod estimate;
mod fit;
mod group_sheet;
mod meter;
mod output;
mod picture;
mod show;

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};
use retouch_proto::worker::Role;
use retouch_worker::panics;

use self::{
    control::{events, groups, status, steer, top, versions},
    runtime::block_on,
};

/// Burn allocates and frees a large buffer for each tensor: with the system's allocator a third of the time is page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Reinforcement learning for instruction-based image editors, on one machine or a cluster.
#[derive(Debug, Parser)]
#[command(name = "retouch", version, arg_required_else_help = true, after_help = exit::CODES_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Launch(launch::LaunchArgs),
    Status(status::StatusArgs),
    Top(top::TopArgs),
    /// Give out no more work until `resume`; what runs is finished.
    Pause(steer::ControlArgs),
    /// Give out work again.
    Resume(steer::ControlArgs),
    Drain(steer::DrainArgs),
    Restart(steer::RestartArgs),
    /// End the run at its last committed iteration, with a checkpoint.
    Stop(steer::ControlArgs),
    Checkpoint(steer::CheckpointArgs),
    Groups(groups::GroupsArgs),
    Versions(versions::VersionsArgs),
    Events(events::EventsArgs),
    Report(report::ReportArgs),
    Samples(samples::SamplesArgs),
    Join(join::JoinArgs),
    Node(node::NodeArgs),
    Edit(edit::EditArgs),
    /// Compare an adapter with its base on held-out pairs.
    Evaluate(evaluate::EvaluateArgs),
    Sft(sft::SftArgs),
    /// Check the folder of a base editor or a judge before a run loads it.
    Model(model::ModelArgs),
    /// Convert an adapter, or merge it into its base.
    Lora(lora::LoraArgs),
    Devices(devices::DevicesArgs),
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
    Completions(completions::CompletionsArgs),
}

fn main() -> ExitCode {
    completions::answer(Cli::command);
    panics::report();
    let cli = Cli::parse();
    match catch_unwind(AssertUnwindSafe(|| run(cli.command))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => exit::report(&error),
        Err(panic) if panics::is_out_of_memory(&*panic) => ExitCode::FAILURE,
        Err(panic) => resume_unwind(panic),
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Launch(args) => block_on(launch::run(args)),
        Command::Status(args) => block_on(status::run(args)),
        Command::Pause(args) => block_on(steer::run(retouch_coordinator::Command::Pause, args)),
        Command::Resume(args) => block_on(steer::run(retouch_coordinator::Command::Resume, args)),
        Command::Drain(args) => block_on(steer::drain(args)),
        Command::Restart(args) => block_on(steer::restart(args)),
        Command::Stop(args) => block_on(steer::run(retouch_coordinator::Command::Stop, args)),
        Command::Checkpoint(args) => block_on(steer::checkpoint(args)),
        Command::Top(args) => block_on(top::run(args)),
        Command::Groups(args) => block_on(groups::run(args)),
        Command::Versions(args) => block_on(versions::run(args)),
        Command::Events(args) => block_on(events::run(args)),
        Command::Report(args) => report::run(args),
        Command::Samples(args) => samples::run(args),
        Command::Join(args) => join::run(args),
        Command::Node(args) => node::run(args),
        Command::Edit(args) => edit::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Sft(args) => sft::run(args),
        Command::Model(args) => model::run(args),
        Command::Lora(args) => lora::run(args),
        Command::Devices(args) => devices::run(args),
        Command::Dataset(args) => dataset::run(args),
        Command::Config(command) => config::run(command),
        Command::Coordinator(args) => roles::coordinator(args),
        Command::RolloutWorker(args) => roles::worker(Role::Rollout, args),
        Command::RewardWorker(args) => roles::worker(Role::Reward, args),
        Command::Learner(args) => roles::worker(Role::Learner, args),
        Command::Completions(args) => completions::run(args),
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;
    use clap_complete::{CompletionCandidate, Shell, engine::complete};

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_command_and_option_explains_itself() {
        let mut cli = Cli::command();
        cli.build();
        cli.clone().debug_assert();
        for command in cli.get_subcommands() {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name}");
            for argument in command.get_arguments() {
                let help = argument.get_help().is_some();
                assert!(
                    help || argument.is_hide_set(),
                    "{name} {}",
                    argument.get_id()
                );
            }
        }
    }

    #[test]
    fn whoever_starts_processes_again_reads_their_exit_codes_in_their_help() {
        let mut cli = Cli::command();
        cli.build();
        for name in [
            "launch",
            "coordinator",
            "rollout-worker",
            "reward-worker",
            "learner",
            "join",
        ] {
            let command = cli.find_subcommand_mut(name).expect(name);
            let help = command.render_long_help().to_string();
            assert!(
                help.contains("75") && help.contains("130"),
                "{name}\n{help}"
            );
        }
    }

    /// What a shell is offered for the last of these words.
    fn offered(words: &[&str]) -> Vec<String> {
        let words: Vec<_> = ["retouch"].iter().chain(words).map(Into::into).collect();
        let last = words.len() - 1;
        // Where tests run.
        let here = env!("CARGO_MANIFEST_DIR");
        let offered = complete(&mut Cli::command(), words, last, Some(here.as_ref())).unwrap();
        let text = |candidate: &CompletionCandidate| candidate.get_value().display().to_string();
        offered.iter().map(text).collect()
    }

    #[test]
    fn every_command_is_offered_and_every_shell_asks() {
        let commands = offered(&[""]);
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            assert!(commands.iter().any(|offered| offered == name), "{name}");
        }
        for shell in Shell::value_variants() {
            let script = completions::script(*shell).unwrap();
            assert!(script.contains("_RETOUCH_COMPLETE"), "{shell}: {script}");
        }
    }

    #[test]
    fn shells_complete_names_and_folders() {
        for (words, name) in [
            (&["groups", "--state", ""][..], "filtered"),
            (&["events", "--kind", "at"], "attempt-failed"),
            (&["join", "rew"], "reward-worker"),
            (&["join", "reward-worker", "--s"], "--scratch"),
            (&["status", "sr"], "src/"),
            (&["launch", "Car"], "Cargo.toml"),
        ] {
            let offered = offered(words);
            assert!(
                offered.iter().any(|offered| offered == name),
                "{words:?}: {offered:?}"
            );
        }
    }

    /// The words of a variant here would stand in place of all that its arguments say.
    #[test]
    fn help_has_the_examples_of_its_commands() {
        let mut cli = Cli::command();
        cli.build();
        for (name, example) in [
            ("launch", "retouch launch run.toml --retry"),
            ("edit", "--run runs/quickstart --output out.png"),
            ("sft", "lora.init = \"OUTPUT/adapter\""),
            ("samples", "retouch samples runs/first"),
        ] {
            let command = cli.find_subcommand_mut(name).expect(name);
            let help = command.render_long_help().to_string();
            assert!(help.contains(example), "{name}\n{help}");
        }
    }
}
