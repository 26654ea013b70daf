//! `retouch launch`: a whole cluster on this machine, from the run file to the report.
//!
//! Every role is a process of its own that talks gRPC over loopback, exactly as on a cluster; only the one who starts
//! them differs. The run folder is the truth: launching the same run file again continues an interrupted run.

mod dry_run;
mod memory;
mod processes;
mod progress;
mod run_folder;
mod supervisor;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use retouch_models::device;
use retouch_proto::{RunConfig, RunFolder};

use self::{progress::Progress, run_folder::OwnedFolder, supervisor::Supervisor};
use crate::output::say;
use crate::{
    config::ConfigArgs, control::Target, credentials, exit::UsageError, report, totals::Launch,
};

/// How long the coordinator may take to listen.
const COORDINATOR_START_MAX: Duration = Duration::from_secs(30);
/// The same where it may have to fetch a checkpoint first.
const COORDINATOR_FETCH_MAX: Duration = Duration::from_secs(3600);
const ADDRESS_POLL: Duration = Duration::from_millis(20);

/// Runs a whole training on this machine and reports what it achieved.
#[derive(Debug, Args)]
pub(crate) struct LaunchArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// End after training, without the held-out evaluation and the report.
    #[arg(long)]
    no_evaluation: bool,
    /// Start nothing: walk one iteration of the first learner here, on random samples, and tell its
    /// shapes, its memory as planned and as measured, and its time by stage.
    #[arg(long, conflicts_with = "no_evaluation")]
    dry_run: bool,
    /// Print what a dry run tells as JSON, for programs.
    #[arg(long, requires = "dry_run")]
    json: bool,
    /// Begin a new run in this folder from the last checkpoint of the run in `run_dir`, with settings that the old run
    /// can't continue with (`--set learner.learning_rate=1e-4`). Model and adapter stay the same.
    #[arg(long, value_name = "NEW_FOLDER", conflicts_with = "dry_run")]
    fork: Option<PathBuf>,
}

pub(crate) async fn run(args: LaunchArgs) -> anyhow::Result<()> {
    let mut config = args.config.load()?;
    if args.dry_run {
        return dry_run::run(&config, args.json);
    }
    let held_out_pairs = match args.no_evaluation {
        true => 0,
        false => config.evaluation.pairs,
    };
    crate::config::check_files(&config, held_out_pairs)?;
    check_devices(&config)?;
    if let Some(new) = args.fork {
        config = fork(config, &new)?;
    }
    let folder = OwnedFolder::open(&config)?;
    say!("run folder {}", folder.path().display());
    let launch = Launch::begin(&folder)?;
    let trained = train(&config, &folder, &launch).await;
    let totals = launch.save();
    trained?;
    let totals = totals?;
    if args.no_evaluation {
        say!("trained in {}", crate::show::duration(totals.wall_s));
        return Ok(());
    }
    report::make(&config, &folder)
}

/// Begins a new run from the one in the run file's folder; gives the new run's settings.
fn fork(config: RunConfig, new: &Path) -> anyhow::Result<RunConfig> {
    let old = RunFolder::new(&config.run_dir);
    let run_dir = new
        .to_str()
        .map(str::to_owned)
        .ok_or_else(|| UsageError(format!("--fork {}: the name is not UTF-8", new.display())))?;
    let config = RunConfig { run_dir, ..config };
    let iteration = retouch_coordinator::fork(&old, &RunFolder::new(new), &config)
        .map_err(|error| UsageError(format!("can't fork {}: {error}", old.path().display())))?;
    say!(
        "{} begins from checkpoint {iteration} of {}; to continue it later, give --set run_dir={} instead of --fork",
        new.display(),
        old.path().display(),
        new.display(),
    );
    Ok(config)
}

/// Checks that this build and machine have the devices of all roles, so that what is missing is
/// said once and not by every process.
fn check_devices(config: &RunConfig) -> anyhow::Result<()> {
    device::parse(&config.model.device).context("model.device")?;
    device::parse(&config.reward.device).context("reward.device")?;
    retouch_learner::session::check_device(&config.learner).context("learner.device")
}

/// Starts all processes and waits until the coordinator says that the run is over.
async fn train(config: &RunConfig, folder: &RunFolder, launch: &Launch) -> anyhow::Result<()> {
    let mut supervisor = Supervisor::new(&folder.logs())?;
    credentials::run_authority(folder.path())?;
    let address_file = folder.coordinator_address();
    let _ = std::fs::remove_file(&address_file);
    supervisor.start(processes::coordinator(folder));
    let pids = supervisor.pids();
    let result = tokio::select! {
        result = follow(config, folder, &mut supervisor, &address_file) => result,
        () = memory::watch(pids, launch) => unreachable!("memory is watched for ever"),
        signal = tokio::signal::ctrl_c() => match signal {
            Ok(()) => Err(anyhow::anyhow!("interrupted; the same command continues from the last checkpoint")),
            Err(error) => Err(error.into()),
        },
    };
    supervisor.shut_down().await;
    result
}

async fn follow(
    config: &RunConfig,
    folder: &RunFolder,
    supervisor: &mut Supervisor,
    address_file: &Path,
) -> anyhow::Result<()> {
    let address = tokio::select! {
        address = wait_for_address(address_file, start_max(config)) => address?,
        // A run that is over gives workers nothing to do: its coordinator ends at once.
        end = supervisor.next_end() => return end.map(drop),
    };
    for spec in processes::workers(config, folder) {
        supervisor.start(spec);
    }
    say!(
        "coordinator at {address}; `retouch status {}` shows more",
        folder.path().display()
    );
    let mut progress = Progress::new();
    let target = Target::folder(folder.path().to_owned());
    let result = tokio::select! {
        () = progress.follow(&target) => unreachable!("progress follows for ever"),
        result = wait_for_coordinator(supervisor) => result,
    };
    progress.finish();
    result
}

/// Workers that end by themselves were told to; the run is over when the coordinator ends.
async fn wait_for_coordinator(supervisor: &mut Supervisor) -> anyhow::Result<()> {
    while supervisor.next_end().await? != processes::COORDINATOR {}
    Ok(())
}

fn start_max(config: &RunConfig) -> Duration {
    match config.checkpoint.url.is_empty() {
        true => COORDINATOR_START_MAX,
        false => COORDINATOR_FETCH_MAX,
    }
}

async fn wait_for_address(file: &Path, start_max: Duration) -> anyhow::Result<String> {
    let deadline = Instant::now() + start_max;
    loop {
        if let Ok(address) = std::fs::read_to_string(file) {
            return Ok(address.trim().to_owned());
        }
        if Instant::now() > deadline {
            bail!("the coordinator did not listen within {start_max:?}; see logs/coordinator.log");
        }
        tokio::time::sleep(ADDRESS_POLL).await;
    }
}
