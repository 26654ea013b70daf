//! The client side of a running coordinator, and the commands that only tell it something.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use retouch_credentials::{Access, Principal};
use retouch_worker::session::CoordinatorAddress;

use crate::credentials::{CredentialArgs, in_run_folder};
pub(crate) use crate::grpc::ControlClient;

/// Which run a command means.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// The run's folder, as `launch` printed it.
    #[arg(value_name = "RUN_FOLDER", required_unless_present = "coordinator")]
    run: Option<PathBuf>,
    /// The coordinator's address, host:port, for a run whose folder is not here.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "run")]
    coordinator: Option<String>,
    #[command(flatten)]
    credentials: CredentialArgs,
}

/// A command for a run.
#[derive(Debug, Args)]
pub(crate) struct ControlArgs {
    #[command(flatten)]
    target: Target,
}

/// What the coordinator is told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Command {
    /// Give out no more work.
    Pause,
    /// Give out work again.
    Resume,
    /// Finish the open iteration, write a checkpoint, end.
    Drain,
    /// Abandon the open iteration, write a checkpoint, end.
    Stop,
}

/// How long a coordinator may take to answer a command line.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(10);

impl Target {
    /// A target by its run folder.
    pub(crate) fn folder(run: PathBuf) -> Self {
        Self {
            run: Some(run),
            coordinator: None,
            credentials: CredentialArgs::default(),
        }
    }

    /// The coordinator's address, read from the run folder where none was given.
    pub(crate) fn address(&self) -> anyhow::Result<String> {
        if let Some(address) = &self.coordinator {
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
        self.credentials
            .access(Principal::Control, &address, own, ANSWER_MAX)
            .await
    }

    fn read(&self, name: &str) -> anyhow::Result<String> {
        let Some(run) = &self.run else {
            bail!("name a run folder, or give --coordinator with --credentials or --token");
        };
        let file = run.join(name);
        let text = std::fs::read_to_string(&file).with_context(|| {
            format!(
                "no coordinator runs in {}: can't read {}",
                run.display(),
                file.display()
            )
        })?;
        Ok(text.trim().to_owned())
    }
}

pub(crate) async fn run(command: Command, args: ControlArgs) -> anyhow::Result<()> {
    let mut control = ControlClient::connect(&args.target).await?;
    let state = match command {
        Command::Pause => control.pause().await?,
        Command::Resume => control.resume().await?,
        Command::Drain => control.drain().await?,
        Command::Stop => control.stop().await?,
    };
    println!("{state}");
    Ok(())
}
