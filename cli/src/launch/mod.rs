//! `retouch launch`: a whole cluster on this machine, from the run file to the report.
//!
//! Every role is a process of its own that talks gRPC over loopback, exactly as on a cluster; only the one who starts
//! them differs. The run folder is the truth: launching the same run file again continues an interrupted run.
//!
//! However a launch ends, it ends in this order: the coordinator, which writes down what is committed and needs its
//! learners for that; then the workers; then the reason, as the last line.

mod crew;
mod disk;
mod dry_run;
#[cfg(test)]
mod fixture;
mod last_words;
mod memory;
mod placement;
mod processes;
mod progress;
mod run_folder;
mod samples;
mod standing;
mod supervisor;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};
use clap::Args;
use retouch_models::device::{
    self,
    cards::{self, Card},
};
use retouch_proto::{Iteration, RunConfig, RunFolder, worker::Role};
use retouch_worker::process::{self, Enforcer, Stop, StopSignal};

use self::{
    crew::Crew,
    placement::Seat,
    progress::{Progress, Seen},
    run_folder::OwnedFolder,
    supervisor::Supervisor,
};
use crate::{
    config::{ConfigArgs, check_run},
    control::Target,
    credentials,
    dataset::Images,
    evaluating::Evaluating,
    exit::{Stopped, UsageError},
    output::remark,
    report,
    room::{self, Need},
    runtime::off_thread,
    totals::Launch,
};

/// How long the coordinator may take to listen. It compares the newest checkpoint with its hashes first, which may be
/// gigabytes on a slow disk.
const COORDINATOR_START_MAX: Duration = Duration::from_secs(600);
/// The same where it may have to fetch a checkpoint first.
const COORDINATOR_FETCH_MAX: Duration = Duration::from_secs(3600);
const ADDRESS_POLL: Duration = Duration::from_millis(20);

/// Run a whole training on this machine and report what it achieved.
///
/// Every role is a process. The same command goes on with a run that was interrupted, or ended by
/// `stop` or `drain`; with one that failed only if --retry is given. A process that dies is
/// started again a few times.
///
/// Workers are spread over the devices that the run file names (model.device, reward.device,
/// learner.device), one device each. What can't fit on a card together is refused before anything
/// starts. `retouch devices` lists this machine's.
///
/// SIGINT (Ctrl-C), SIGTERM and SIGHUP end it in good order within 30 seconds: the last committed
/// iteration is written down first. A second signal ends it at once.
///
/// Exit codes: 0 if the run is done, or `stop` or `drain` ended it; 1 if it failed; 2 if the run
/// file or a file that it names is wrong; 4 if the coordinator refuses a worker; 75 after SIGTERM
/// or SIGHUP and 130 after SIGINT, when the same command goes on. The reason is the last line on
/// standard error.
///
/// Examples:
///
///   retouch launch run.toml
///   retouch launch run.toml --set iterations=200 --no-evaluation
///   retouch launch run.toml --set 'learner.device=["cuda:0","cuda:1"]' --set model.device=cuda:2
///   retouch launch run.toml --retry
///   while retouch launch run.toml; code=$?; [ $code -eq 75 ]; do :; done; exit $code
///
/// `retouch status RUN_FOLDER` shows more of a run, and `retouch report RUN_FOLDER` evaluates it
/// at any time.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct LaunchArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Go on with a run that failed, once its cause is mended: from its last committed iteration.
    #[arg(long)]
    retry: bool,
    /// End after the training and the pictures of `samples.every`, without the held-out evaluation and the report.
    #[arg(long)]
    no_evaluation: bool,
    /// Start nothing: walk one iteration of the first learner here, on random samples, and tell its
    /// shapes, its memory as planned and as measured (of the card, if it computes on one), and its time by stage.
    #[arg(long, conflicts_with_all = ["no_evaluation", "retry"])]
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
    let mut config = args.config.load_here()?;
    if args.dry_run {
        return dry_run::run(config, args.json);
    }
    let held_out_pairs = match args.no_evaluation {
        true => 0,
        false => config.evaluation.pairs,
    };
    // A run that goes on has looked at them.
    let images = match RunFolder::new(&config.run_dir).record().exists() {
        true => Images::Named,
        false => Images::Decoded,
    };
    check_run(&mut config, held_out_pairs, images)?;
    check_devices(&config)?;
    disk::check(&config)?;
    let stop = process::stop_signal(Enforcer::SecondSignal)?;
    if let Some(new) = args.fork {
        config = fork(config, &new)?;
    }
    let folder = OwnedFolder::open(&config)?;
    remark!("run folder {}", folder.path().display());
    let resumption = Resumption::of(&folder, args.retry)?;
    let launch = Launch::begin(&folder)?;
    let trained = train(&config, &folder, &launch, resumption, &stop).await;
    // What it took is nice to know: on a full disk, say, a run that is done is done all the same.
    if let Err(error) = launch.save() {
        remark!("the wall clock and memory of this launch are not added up: {error:#}");
    }
    trained?;
    let totals = launch.totals();
    let after = match args.no_evaluation {
        true => After::Pictures,
        false => After::Evaluation,
    };
    if after == After::Pictures {
        remark!("trained in {}", crate::show::duration(totals.wall_s));
    }
    finish(config.clone(), &folder, after, &stop).await?;
    if let Some(reason) = standing::ended_early(&folder, config.iterations) {
        remark!("{reason}");
    }
    Ok(())
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
    remark!(
        "{} begins from checkpoint {iteration} of {}; to continue it later, give --set run_dir={} instead of --fork",
        new.display(),
        old.path().display(),
        new.display(),
    );
    Ok(config)
}

/// Checks that this build and machine have the devices of all roles and room on them for all workers, so that what is
/// missing is said once and not by every process.
fn check_devices(config: &RunConfig) -> anyhow::Result<()> {
    placement::check_ranks(config)?;
    for role in Role::ALL {
        let (key, devices) = config.devices_of(role);
        for device in devices.names() {
            device::open(*device).map_err(|error| UsageError(format!("{key}: {error}")))?;
        }
    }
    retouch_learner::session::check_device(&config.learner)
        .map_err(|error| UsageError(format!("learner.device: {error}")))?;
    let seats = placement::seats(config);
    let cards = seats.iter().any(|seat| seat.device.card().is_some());
    if cards {
        let cards = cards::cards().map_err(|error| UsageError(error.to_string()))?;
        check_room(config, &seats, &cards)?;
    }
    Ok(())
}

/// Checks that each card holds all workers on it; they are processes of their own and share no weights.
fn check_room(config: &RunConfig, seats: &[Seat], cards: &[Card]) -> Result<(), UsageError> {
    let mut planned = BTreeMap::new();
    for card in cards {
        let mut needs = Vec::new();
        let here = seats
            .iter()
            .filter(|seat| seat.device.card() == Some(card.index));
        for seat in here {
            let bytes = match planned.get(&seat.role.as_str()) {
                Some(bytes) => *bytes,
                None => room::planned_bytes(config, seat.role, seat.device)?,
            };
            planned.insert(seat.role.as_str(), bytes);
            needs.push(Need {
                who: seat.name(),
                role: seat.role,
                bytes,
            });
        }
        room::check(card, &needs)?;
    }
    Ok(())
}

/// How the coordinator is to take up what is recorded.
struct Resumption {
    /// Arguments of its first life. One that is started again goes on with what an earlier one took up.
    arguments: Vec<OsString>,
    seen: Seen,
}

impl Resumption {
    /// # Errors
    /// If the run failed and is not to be tried again.
    fn of(folder: &RunFolder, retry: bool) -> anyhow::Result<Self> {
        if let Some(reason) = standing::failure(folder).filter(|_| !retry) {
            bail!(reason);
        }
        let seen = Seen::recorded(folder);
        if seen.iteration > Iteration(0) {
            remark!("continuing after iteration {}", seen.iteration);
        }
        if standing::is_paused(folder) {
            let path = folder.path().display();
            remark!("the run is paused; `retouch resume {path}` continues it");
        }
        // Of no effect on a run that neither failed nor was stopped.
        let arguments = vec!["--resume".into()];
        Ok(Self { arguments, seen })
    }
}

/// Why processes are to be ended.
enum End {
    /// The run is done, or was ended by a person.
    Over,
    /// It can't go on here.
    Failed(anyhow::Error),
    /// All workers of a role were sent away, and without them nothing moves.
    Deserted(Role),
    Signalled(StopSignal),
}

/// Starts all processes and waits until the coordinator says that the run is over.
async fn train(
    config: &RunConfig,
    folder: &RunFolder,
    launch: &Launch,
    resumption: Resumption,
    stop: &Stop,
) -> anyhow::Result<()> {
    let mut progress = Progress::new(resumption.seen);
    let mut supervisor = Supervisor::new(&folder.logs(), progress.lines())?;
    credentials::run_authority(folder.path())?;
    let _ = std::fs::remove_file(folder.coordinator_address());
    Evaluating::forget(folder);
    supervisor.start(processes::coordinator(folder, resumption.arguments));
    let (pids, progress_lines) = (supervisor.pids(), progress.lines());
    let end = tokio::select! {
        end = follow(config, folder, &mut supervisor, &mut progress) => end.unwrap_or_else(End::Failed),
        () = samples::watch(config, folder, pids.clone(), progress_lines) => unreachable!("samples are drawn for ever"),
        () = memory::watch(pids, launch) => unreachable!("memory is watched for ever"),
        signal = stop.signalled() => End::Signalled(signal),
    };
    if let End::Signalled(signal) = &end {
        let name = signal.name();
        progress.lines().say(&format!(
            "{name}: the last iteration is being written down; a second signal ends at once"
        ));
    }
    // While it writes down what is committed, it needs its learners.
    supervisor.end(processes::COORDINATOR).await;
    supervisor.shut_down().await;
    progress.finish(folder, config.iterations);
    conclude(end, folder)
}

/// The launch's outcome, once all is written down that will be.
fn conclude(end: End, folder: &RunFolder) -> anyhow::Result<()> {
    match end {
        End::Over => Ok(()),
        End::Failed(error) => Err(error),
        End::Deserted(role) => Err(anyhow!(
            "every {role} worker has left the run, which can't go on without one: {}",
            standing::kept(folder)
        )),
        End::Signalled(signal) => match standing::failure(folder) {
            Some(reason) => Err(anyhow!(reason)),
            None => {
                let left = standing::kept(folder);
                Err(Stopped { signal, left }.into())
            }
        },
    }
}

async fn follow(
    config: &RunConfig,
    folder: &RunFolder,
    supervisor: &mut Supervisor,
    progress: &mut Progress,
) -> anyhow::Result<End> {
    let address_file = folder.coordinator_address();
    let address = tokio::select! {
        address = wait_for_address(&address_file, start_max(config)) => address?,
        // A run that is over gives workers nothing to do: its coordinator ends at once.
        end = supervisor.next_end() => return end.map(|_| End::Over),
    };
    let mut crew = Crew::default();
    for (role, spec) in processes::workers(config, folder) {
        crew.join(role, spec.name.clone());
        supervisor.start(spec);
    }
    remark!(
        "coordinator at {address}; `retouch status {}` shows more",
        folder.path().display()
    );
    let target = Target::folder(folder.path().to_owned());
    tokio::select! {
        () = progress.follow(&target) => unreachable!("progress follows for ever"),
        end = wait_for_end(supervisor, &mut crew, &target) => end,
    }
}

/// Workers that end by themselves were told to. The run is over when the coordinator ends, or when too few are left.
async fn wait_for_end(
    supervisor: &mut Supervisor,
    crew: &mut Crew,
    target: &Target,
) -> anyhow::Result<End> {
    loop {
        let ended = tokio::select! {
            ended = supervisor.next_end() => ended?,
            role = crew.deserted(target) => return Ok(End::Deserted(role)),
        };
        if ended == processes::COORDINATOR {
            return Ok(End::Over);
        }
        crew.leave(&ended);
    }
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

/// What is done once the training is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// Drawing what is due of `samples.every`.
    Pictures,
    /// That, and the held-out evaluation with its report.
    Evaluation,
}

/// Shows what the run has learned, unless a signal says that there is no time for it.
async fn finish(
    config: RunConfig,
    folder: &RunFolder,
    after: After,
    stop: &Stop,
) -> anyhow::Result<()> {
    if !standing::has_adapter(folder)? {
        remark!("nothing was trained, so there is nothing to show");
        return Ok(());
    }
    let path = folder.path().display().to_string();
    let folder = folder.clone();
    let report = off_thread(move || {
        // The last checkpoint's pictures, and all that there was no room for before.
        let device = config.model.device.first();
        if let Err(error) = crate::samples::draw(&config, &folder, device) {
            remark!("no pictures of held-out pairs were drawn: {error:#}");
        }
        match after {
            After::Pictures => Ok(()),
            After::Evaluation => report::make(&config, &folder, report::Author::Launch),
        }
    });
    tokio::select! {
        made = report => made?,
        signal = stop.signalled() => {
            let left = format!("the training is done; `retouch report {path}` evaluates it");
            Err(Stopped { signal, left }.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use retouch_proto::config::DeviceName;

    use super::{
        fixture::{card, small_run},
        *,
    };

    #[test]
    fn roles_that_share_a_card_are_counted_together() {
        let mut config = small_run();
        config.model.device = DeviceName::Cuda(0).into();
        config.reward.device = DeviceName::Cuda(0).into();
        config.learner.device = DeviceName::Cuda(1).into();
        let planned = |role, card| {
            room::planned_bytes(&config, role, DeviceName::Cuda(card)).expect("a plan")
        };
        let (rollout, reward) = (planned(Role::Rollout, 0), planned(Role::Reward, 0));
        let learner = planned(Role::Learner, 1);
        let check = |first, second| {
            let cards = [card(0, first), card(1, second)];
            check_room(&config, &placement::seats(&config), &cards)
        };
        assert!(check(rollout + reward, learner).is_ok());
        let text = check(rollout + reward - 1, learner)
            .unwrap_err()
            .to_string();
        for part in [
            "cuda:0 (a card) is too small",
            "rollout-worker-0",
            "reward-worker-0",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("learner-0"), "{text}");
        let text = check(rollout + reward, learner - 1)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("cuda:1") && text.contains("learner-0"),
            "{text}"
        );
    }
}
