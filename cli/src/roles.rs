//! The four roles as a cluster starts them: one process each.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use clap::Args;
use retouch_coordinator::{Admission, CoordinatorOptions, ServeError};
use retouch_credentials::{Credentials, Principal};
use retouch_models::editor::EditorSource;
use retouch_proto::{RunFolder, WorkerId, config::DeviceName, worker::Role};
use retouch_worker::{
    RoleError,
    process::{self, Enforcer, Stop, StopSignal},
    session::{CoordinatorAddress, WorkerOptions},
    telemetry,
};

use crate::{
    config::{ConfigArgs, check_run},
    credentials::{CredentialArgs, run_authority},
    dataset::Images,
    exit::{Refused, StartAgain, Stopped, Unreachable, UsageError},
    initial, room,
    runtime::{block_on, on_network_threads},
};

/// How long a worker waits for a coordinator that is not there yet, when it comes with a join token.
pub(crate) const ENROLL_PATIENCE: Duration = Duration::from_secs(600);

/// How a coordinator ends, below its options: what is above them comes from the list of commands.
const COORDINATOR_ENDS: &str = "\
SIGTERM, SIGINT and SIGHUP suspend the run within 30 seconds: the last committed iteration is written
down, and whoever starts the coordinator again continues from it. A second signal ends it at once.

Exit codes: 0 if the run is over, 1 if it failed, 2 where retrying will not help, 75 (SIGTERM, SIGHUP)
or 130 (SIGINT) if it was suspended.";

/// How a worker ends.
const WORKER_ENDS: &str = "\
On SIGTERM, SIGINT and SIGHUP the worker leaves once nothing is lost with it, within 20 seconds. A
second signal ends it at once.

Exit codes: 0 if the run is over or the worker was drained, 75 if it is to be started again (SIGTERM,
SIGHUP, `retouch restart`), 130 after SIGINT, 2 or 4 where retrying will not help, 3 if no coordinator
answers.";

/// Decides what is done next in one run, and keeps its record.
#[derive(Debug, Args)]
#[command(after_help = COORDINATOR_ENDS)]
pub(crate) struct CoordinatorArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where to listen instead of the run file's `cluster.listen`.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<SocketAddr>,
    /// A folder with ca.pem, cert.pem and key.pem, for a run whose certificates come from elsewhere;
    /// without it the run folder has an authority of its own, which also takes join tokens.
    #[arg(long, value_name = "FOLDER")]
    credentials: Option<PathBuf>,
    /// Go on with a run that was stopped or has failed; without it, such a run stays ended, however often it is started.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    process: ProcessArgs,
}

/// Joins a run and works until it ends.
#[derive(Debug, Args)]
#[command(after_help = WORKER_ENDS)]
pub(crate) struct WorkerArgs {
    /// The coordinator's address, host:port; or the file in the run folder where it leaves it.
    #[arg(long, value_name = "ADDRESS")]
    coordinator: String,
    /// A name that the worker keeps over restarts and that no other worker of the run has.
    #[arg(long)]
    name: WorkerId,
    /// A folder of this worker alone, for what does not fit into memory.
    #[arg(long)]
    data_dir: PathBuf,
    /// The device instead of the run file's: `cpu`, `cuda:N` or `wgpu`. Where the run file names several, one has to be
    /// said.
    #[arg(long)]
    device: Option<DeviceName>,
    /// Where to serve blobs; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "HOST:PORT")]
    listen: SocketAddr,
    /// The host under which other workers reach this one, if not that of --listen.
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// The run folder, if it is not where the run file says.
    #[arg(long)]
    run_dir: Option<PathBuf>,
    #[command(flatten)]
    credentials: CredentialArgs,
    #[command(flatten)]
    process: ProcessArgs,
}

/// What every role's process is told.
#[derive(Debug, Args)]
pub(crate) struct ProcessArgs {
    /// End when the process with this id ends.
    #[arg(long, hide = true)]
    parent: Option<u32>,
}

impl ProcessArgs {
    /// Ties the process to its parent, sets up logging, and listens for the signals that end it.
    pub(crate) fn set_up(&self) -> anyhow::Result<Stop> {
        let enforcer = match self.parent {
            Some(parent) => {
                process::die_with_parent(parent)?;
                Enforcer::Parent
            }
            None => Enforcer::SecondSignal,
        };
        telemetry::init(&telemetry::TelemetryOptions::default())?;
        process::raise_file_limit();
        Ok(process::stop_signal(enforcer)?)
    }
}

pub(crate) fn coordinator(args: CoordinatorArgs) -> anyhow::Result<()> {
    block_on(async {
        let stop = args.process.set_up()?;
        let mut config = args.config.load()?;
        // Held-out pairs are for `evaluate`, which may run elsewhere.
        check_run(&mut config, 0, Images::Named)?;
        let listen = match args.listen {
            Some(listen) => listen,
            None => config
                .cluster
                .listen
                .parse()
                .context(UsageError("cluster.listen is not host:port".to_owned()))?,
        };
        let run_dir = PathBuf::from(&config.run_dir);
        initial::write(&config, &RunFolder::new(&run_dir))?;
        let admission = match args.credentials {
            Some(folder) => Admission::Given(
                Credentials::load(&folder)
                    .map_err(ServeError::from)
                    .map_err(unserved)?,
            ),
            None => Admission::Authority(run_authority(&run_dir)?),
        };
        let options = CoordinatorOptions {
            resume: args.resume,
            stop: stop.token().clone(),
            ..CoordinatorOptions::new(config, run_dir, listen, admission)
        };
        let stopped = |left: String| {
            let signal = stop.signal().unwrap_or(StopSignal::Terminate);
            Stopped { signal, left }
        };
        let outcome = match retouch_coordinator::serve(options).await {
            Err(ServeError::Interrupted) => {
                return Err(stopped("the run was not taken up yet".to_owned()).into());
            }
            Err(ServeError::Stopped { iteration }) => {
                tracing::info!(%iteration, "the run was stopped; --resume goes on with it");
                return Ok(());
            }
            outcome => outcome.map_err(unserved)?,
        };
        let iteration = outcome.iteration;
        if outcome.suspended {
            let left = match outcome.checkpointed {
                true => format!("iteration {iteration} is written down"),
                false => format!("iteration {iteration} could not be written down in time"),
            };
            return Err(stopped(left).into());
        }
        tracing::info!(%iteration, "the run is over");
        Ok(())
    })
}

/// Whoever would start the coordinator again learns from the exit code not to.
fn unserved(error: ServeError) -> anyhow::Error {
    match error.is_lasting() {
        true => UsageError(error.to_string()).into(),
        false => error.into(),
    }
}

pub(crate) fn worker(role: Role, args: WorkerArgs) -> anyhow::Result<()> {
    on_network_threads(async {
        let stop = args.process.set_up()?;
        let coordinator = CoordinatorAddress::from(args.coordinator);
        let access =
            args.credentials
                .access(Principal::Worker(role), &coordinator, None, ENROLL_PATIENCE);
        let defaults = WorkerOptions::new(
            coordinator.clone(),
            unless_stopped(access, &stop).await?,
            args.name,
            args.data_dir,
        );
        let options = WorkerOptions {
            device: args.device.map(|device| device.to_string()),
            listen: args.listen,
            advertise: args.advertise,
            run_dir: args.run_dir,
            check_room: room::check_role,
            stop: stop.token().clone(),
            ..defaults
        };
        run(role, options, EditorSource::Own).await?;
        ended_by_itself(&stop)
    })
}

/// What comes before a worker has joined, and may wait for a coordinator; a signal ends it.
pub(crate) async fn unless_stopped<T>(
    work: impl Future<Output = anyhow::Result<T>>,
    stop: &Stop,
) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        signal = stop.signalled() => Err(left_by(signal)),
    }
}

/// A worker ends without an error when the run is over or goes on without it, but also when a signal came: then whoever
/// keeps it alive is to start it again.
pub(crate) fn ended_by_itself(stop: &Stop) -> anyhow::Result<()> {
    stop.signal().map_or(Ok(()), |signal| Err(left_by(signal)))
}

fn left_by(signal: StopSignal) -> anyhow::Error {
    let left = "its work goes to others, and to itself once it is started again".to_owned();
    Stopped { signal, left }.into()
}

/// A role from joining the run to its end.
pub(crate) async fn run(
    role: Role,
    options: WorkerOptions,
    editors: EditorSource,
) -> anyhow::Result<()> {
    let ended = match role {
        Role::Rollout => retouch_rollout_worker::run(options, editors).await,
        Role::Reward => retouch_reward_worker::run(options).await,
        Role::Learner => retouch_learner::session::run(options, editors).await,
    };
    match ended {
        Err(error) if error.is_stopped() => Ok(()),
        ended => ended.map_err(unfinished),
    }
}

/// Whoever would start the process again learns from the exit code whether to.
fn unfinished(error: RoleError) -> anyhow::Error {
    if error.is_restart() {
        StartAgain.into()
    } else if error.is_refusal() {
        Refused(error.to_string()).into()
    } else if error.is_unanswered() {
        Unreachable(error.to_string()).into()
    } else if error.is_lasting() {
        UsageError(error.to_string()).into()
    } else {
        error.into()
    }
}
