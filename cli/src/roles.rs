//! The four roles as a cluster starts them: one process each.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use clap::Args;
use retouch_coordinator::{Admission, CoordinatorOptions, ServeError};
use retouch_credentials::{Credentials, Principal};
use retouch_models::editor::EditorSource;
use retouch_proto::{WorkerId, worker::Role};
use retouch_worker::{
    process,
    session::{CoordinatorAddress, WorkerOptions},
    telemetry,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{ConfigArgs, check_files},
    credentials::{CredentialArgs, run_authority},
    exit::{StartAgain, UsageError},
    runtime::{block_on, on_network_threads},
};

/// How long a worker waits for a coordinator that is not there yet, when it comes with a join token.
pub(crate) const ENROLL_PATIENCE: Duration = Duration::from_secs(600);

/// Decides what is done next in one run, and keeps its record.
#[derive(Debug, Args)]
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
    /// The device instead of the run file's: `cpu` or `cuda:0`.
    #[arg(long)]
    device: Option<String>,
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
    /// Ties the process to its parent, sets up logging, and gives the token that SIGTERM cancels.
    pub(crate) fn set_up(&self) -> anyhow::Result<CancellationToken> {
        if let Some(parent) = self.parent {
            process::die_with_parent(parent)?;
        }
        telemetry::init(&telemetry::TelemetryOptions::default())?;
        process::raise_file_limit();
        Ok(process::stop_signal()?)
    }
}

pub(crate) fn coordinator(args: CoordinatorArgs) -> anyhow::Result<()> {
    block_on(async {
        let stop = args.process.set_up()?;
        let config = args.config.load()?;
        // Held-out pairs are for `evaluate`, which may run elsewhere.
        check_files(&config, 0)?;
        let listen = match args.listen {
            Some(listen) => listen,
            None => config
                .cluster
                .listen
                .parse()
                .context("cluster.listen is no host:port")?,
        };
        let run_dir = PathBuf::from(&config.run_dir);
        let admission = match args.credentials {
            Some(folder) => Admission::Given(Credentials::load(&folder)?),
            None => Admission::Authority(run_authority(&run_dir)?),
        };
        let options = CoordinatorOptions {
            resume: args.resume,
            stop,
            ..CoordinatorOptions::new(config, run_dir, listen, admission)
        };
        let outcome = match retouch_coordinator::serve(options).await {
            Err(ServeError::Stopped { iteration }) => {
                tracing::info!(%iteration, "the run was stopped; --resume goes on with it");
                return Ok(());
            }
            outcome => outcome?,
        };
        let iteration = outcome.iteration;
        if outcome.suspended {
            tracing::info!(%iteration, written_down = outcome.checkpointed, "suspended");
            return Err(StartAgain.into());
        }
        tracing::info!(%iteration, "the run is over");
        Ok(())
    })
}

pub(crate) fn worker(role: Role, args: WorkerArgs) -> anyhow::Result<()> {
    on_network_threads(async {
        let stop = args.process.set_up()?;
        let coordinator = CoordinatorAddress::from(args.coordinator);
        let access = args
            .credentials
            .access(Principal::Worker(role), &coordinator, None, ENROLL_PATIENCE)
            .await?;
        let defaults = WorkerOptions::new(coordinator, access, args.name, args.data_dir);
        let options = WorkerOptions {
            device: args.device,
            listen: args.listen,
            advertise: args.advertise,
            run_dir: args.run_dir,
            stop,
            ..defaults
        };
        run(role, options, EditorSource::Own).await
    })
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
    ended.map_err(|error| match error {
        error if error.is_restart() => StartAgain.into(),
        // A parent that would start the process again learns from the exit code not to.
        error if error.is_lasting() => UsageError(error.to_string()).into(),
        error => error.into(),
    })
}
