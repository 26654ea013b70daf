//! Which run a command means, and the commands that tell its coordinator something.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use retouch_credentials::{Access, Principal};
use retouch_proto::{
    WorkerId,
    status::{Controlled, Presence, RunStatus},
};
use retouch_worker::session::CoordinatorAddress;

pub(crate) use crate::control_grpc::ControlClient;
use crate::output::{print_json, say};
use crate::{
    credentials::{CredentialArgs, in_run_folder},
    exit::{Refused, Unreachable, UsageError},
};

/// How long a coordinator may take to answer a command line.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How often a command that waits looks whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const NO_RUN: &str = "name a run folder, or give --coordinator with --token or --credentials";

/// How a run is reached whose folder is not here.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Remote {
    /// The coordinator's address, for a run whose folder is not on this machine.
    #[arg(long, value_name = "HOST:PORT", help_heading = "Another machine's run")]
    pub(crate) coordinator: Option<String>,
    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
}

/// Which run a command means.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// The run's folder, as `launch` printed it.
    #[arg(
        value_name = "RUN_FOLDER",
        required_unless_present = "coordinator",
        conflicts_with = "coordinator"
    )]
    run: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

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
    #[arg(value_names = ["RUN_FOLDER", "WORKER"], num_args = 0..=2)]
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
    #[arg(value_names = ["RUN_FOLDER", "WORKER"], num_args = 1..=2, required = true)]
    words: Vec<String>,
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    output: Output,
}

/// What the coordinator is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Give out no more work.
    Pause,
    /// Give out work again.
    Resume,
    /// Finish the open iteration, write a checkpoint, end.
    Drain,
    /// Abandon the open iteration, write a checkpoint, end.
    Stop,
    /// Write the last committed iteration down.
    Checkpoint,
    /// Let one worker finish and leave.
    DrainWorker(WorkerId),
    /// Have one worker's process started again.
    RestartWorker(WorkerId),
}

impl Target {
    /// A target by its run folder.
    pub(crate) fn folder(run: PathBuf) -> Self {
        Self {
            run: Some(run),
            remote: Remote::default(),
        }
    }

    /// A target by its address.
    pub(crate) fn remote(remote: Remote) -> Self {
        Self { run: None, remote }
    }

    /// The run folder, where it is here.
    pub(crate) fn run_folder(&self) -> Option<&PathBuf> {
        self.run.as_ref()
    }

    /// The coordinator's address, read from the run folder where none was given.
    pub(crate) fn address(&self) -> anyhow::Result<String> {
        if let Some(address) = &self.remote.coordinator {
            return Ok(address.clone());
        }
        self.read(retouch_coordinator::ADDRESS_FILE_NAME)
    }

    /// Access as someone who controls the run: the run folder has it where nothing else was given.
    pub(crate) async fn access(&self, address: &str) -> anyhow::Result<Access> {
        let address = CoordinatorAddress::from(address.to_owned());
        let own = self
            .run
            .as_deref()
            .map(|run| in_run_folder(run, Principal::Control));
        self.remote
            .credentials
            .access(Principal::Control, &address, own, ANSWER_MAX)
            .await
    }

    fn read(&self, name: &str) -> anyhow::Result<String> {
        let Some(run) = &self.run else {
            return Err(UsageError(NO_RUN.to_owned()).into());
        };
        let file = run.join(name);
        let text = std::fs::read_to_string(&file).with_context(|| {
            Unreachable(format!(
                "no coordinator runs in {}: can't read {}",
                run.display(),
                file.display()
            ))
        })?;
        Ok(text.trim().to_owned())
    }
}

/// Takes apart the words of a command that may name a worker: the folder comes first unless the run is remote.
fn run_and_worker(words: &[String], remote: &Remote) -> anyhow::Result<(Target, Option<WorkerId>)> {
    let (target, rest) = match (&remote.coordinator, words) {
        (Some(_), rest) => (Target::remote(remote.clone()), rest),
        (None, [folder, rest @ ..]) => {
            let (run, remote) = (Some(folder.into()), remote.clone());
            (Target { run, remote }, rest)
        }
        (None, []) => {
            return Err(UsageError(NO_RUN.to_owned()).into());
        }
    };
    let worker = match rest {
        [] => None,
        [name] => {
            let id = WorkerId::new(name.clone());
            Some(id.map_err(|error| UsageError(error.to_string()))?)
        }
        _ => {
            let problem = format!("{words:?}: with --coordinator, give the worker's name alone");
            return Err(UsageError(problem).into());
        }
    };
    Ok((target, worker))
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
        say!("{}", answer.message);
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
            return print_json(answer);
        }
        say!("{}", answer.message);
        Ok(())
    }
}

/// What a refusal means for people: the code and the reason.
pub(crate) fn refused(reason: &str, code: &str) -> anyhow::Error {
    Refused(format!("the coordinator refuses: {reason} ({code})")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_folder_comes_first_unless_the_run_is_remote() {
        let here = Remote::default();
        let (target, worker) = run_and_worker(&words(&["runs/x", "learner-0"]), &here).unwrap();
        assert_eq!(target.run, Some(PathBuf::from("runs/x")));
        assert_eq!(worker.unwrap().as_str(), "learner-0");
        let (target, worker) = run_and_worker(&words(&["runs/x"]), &here).unwrap();
        assert_eq!((target.run, worker), (Some(PathBuf::from("runs/x")), None));

        let remote = Remote {
            coordinator: Some("host:1".into()),
            ..Remote::default()
        };
        let (target, worker) = run_and_worker(&words(&["learner-0"]), &remote).unwrap();
        assert_eq!(target.address().unwrap(), "host:1");
        assert_eq!(worker.unwrap().as_str(), "learner-0");
        let (_, worker) = run_and_worker(&[], &remote).unwrap();
        assert_eq!(worker, None);
    }

    #[test]
    fn words_too_few_or_too_many_or_strange_are_usage_errors() {
        let here = Remote::default();
        let remote = Remote {
            coordinator: Some("host:1".into()),
            ..Remote::default()
        };
        for (given, remote) in [
            (words(&[]), &here),
            (words(&["runs/x", "no such name!"]), &here),
            (words(&["runs/x", "learner-0"]), &remote),
        ] {
            let error = run_and_worker(&given, remote).unwrap_err();
            assert!(error.is::<UsageError>(), "{given:?}: {error}");
        }
    }
}
