//! The commands that send a run's coordinator a single order: pause, resume, drain, restart, stop, checkpoint.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use retouch_coordinator::Command;
use retouch_proto::status::{Controlled, Presence, RunStatus};

use super::{
    candidates,
    control_grpc::ControlClient,
    target::{Remote, Target, run_and_worker},
};
use crate::{
    exit::UsageError,
    output::{self, remark},
};

/// How often a command that waits looks whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A command for a run.
#[derive(Debug, Args)]
pub(crate) struct ControlArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Output {
    /// Print the answer as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write a checkpoint of the last committed iteration now.
///
/// Writes the last committed iteration down as soon as the learners are free, and waits until it is durable. The
/// scheduled checkpoints are made besides. A checkpoint that can't be made is given up, and the run goes on.
#[derive(Debug, Args)]
pub(crate) struct CheckpointArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
    /// Return at once instead of waiting until the checkpoint is durable.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for it, in seconds.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout_s: u64,
}

/// Let one worker finish and leave, or the whole run end after the open iteration.
///
/// With a worker's name: it finishes what it has, gets no more, and leaves as soon as nothing would be lost with it (a
/// learner that alone holds the state writes it down first), at the latest after the run's lease_s. A drain is
/// forgotten if the worker or the coordinator is started again before. Without a name: the run finishes the open
/// iteration, writes a checkpoint and ends.
#[derive(Debug, Args)]
#[command(
    override_usage = "retouch drain [OPTIONS] RUN_FOLDER [WORKER]\n       retouch drain [OPTIONS] --coordinator HOST:PORT [WORKER]"
)]
pub(crate) struct DrainArgs {
    /// The run's folder (not with --coordinator), then the worker's name; without a name, the whole run.
    #[arg(value_names = ["RUN_FOLDER", "WORKER"], num_args = 0..=2, add = candidates::run_and_worker())]
    words: Vec<String>,
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    output: Output,
    /// Wait until the worker has left (with a worker's name).
    #[arg(long)]
    wait: bool,
    /// How long to wait, in seconds.
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    timeout_s: u64,
}

/// Have one worker's process end and be started again; its work goes to others.
///
/// The worker abandons what it does, which others get at once, and its process ends with exit code 75. `launch` starts
/// it again by itself; elsewhere Kubernetes, Slurm or systemd must be set to.
#[derive(Debug, Args)]
#[command(
    override_usage = "retouch restart [OPTIONS] RUN_FOLDER WORKER\n       retouch restart [OPTIONS] --coordinator HOST:PORT WORKER"
)]
pub(crate) struct RestartArgs {
    /// The run's folder (not with --coordinator), then the worker's name.
    #[arg(value_names = ["RUN_FOLDER", "WORKER"], num_args = 1..=2, required = true, add = candidates::run_and_worker())]
    words: Vec<String>,
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(command: Command, args: ControlArgs) -> anyhow::Result<()> {
    let mut control = ControlClient::connect(&args.target).await?;
    args.output.print(&control.tell(command).await?)
}

pub(crate) async fn drain(args: DrainArgs) -> anyhow::Result<()> {
    let (target, worker) = run_and_worker(&args.words, &args.remote)?;
    let mut control = ControlClient::connect(&target).await?;
    let Some(worker) = worker else {
        return args.output.print(&control.tell(Command::Drain).await?);
    };
    let answer = control.tell(Command::DrainWorker(worker.clone())).await?;
    args.output.print(&answer)?;
    if !args.wait {
        return Ok(());
    }
    let gone = |status: &RunStatus| {
        let mut workers = status.workers.iter();
        let worker = workers.find(|other| other.id == worker);
        worker.is_none_or(|worker| matches!(worker.state, Presence::Left | Presence::Lost))
    };
    wait_for(&mut control, args.timeout_s, gone).await?;
    Ok(())
}

pub(crate) async fn restart(args: RestartArgs) -> anyhow::Result<()> {
    let (target, worker) = run_and_worker(&args.words, &args.remote)?;
    let worker = worker.ok_or_else(|| UsageError("name the worker to be restarted".to_owned()))?;
    let mut control = ControlClient::connect(&target).await?;
    let answer = control.tell(Command::RestartWorker(worker)).await?;
    args.output.print(&answer)
}

pub(crate) async fn checkpoint(args: CheckpointArgs) -> anyhow::Result<()> {
    let mut control = ControlClient::connect(&args.target).await?;
    let mut answer = control.tell(Command::Checkpoint).await?;
    if args.no_wait {
        return args.output.print(&answer);
    }
    if !args.output.json {
        remark!("{}", answer.message);
    }
    let least = control.status().await?.committed;
    let status = wait_for(&mut control, args.timeout_s, |status| {
        !status.checkpoint_pending
    })
    .await?;
    if status.checkpointed < least {
        bail!("the checkpoint could not be made; `retouch events` says why");
    }
    answer.message = format!("iteration {} is durable", status.checkpointed);
    args.output.print(&answer)
}

/// Looks at the run until `done`.
async fn wait_for(
    control: &mut ControlClient,
    timeout_s: u64,
    done: impl Fn(&RunStatus) -> bool,
) -> anyhow::Result<RunStatus> {
    let deadline = Instant::now() + Duration::from_secs(timeout_s);
    loop {
        let status = control.status().await?;
        if done(&status) {
            return Ok(status);
        }
        if Instant::now() > deadline {
            bail!(
                "it is not done after {timeout_s} s; the run goes on with it, `status` shows how far it is"
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl Output {
    fn print(self, answer: &Controlled) -> anyhow::Result<()> {
        if self.json {
            output::try_print(output::json(answer)?);
        } else {
            remark!("{}", answer.message);
        }
        Ok(())
    }
}
