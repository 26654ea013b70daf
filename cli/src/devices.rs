//! `retouch devices`: the devices of this machine, and what they lack.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use retouch_models::device::{cache, cards, libdevice};
use serde::Serialize;

use crate::{
    output::{print_json, say},
    show::size,
    warm::{self, WarmArgs},
};

/// Show the devices that this program can compute on, and what is missing for more.
///
/// Cards are named as run files name them. What is missing is told with the package that has it.
///
/// Examples:
///
///   retouch devices
///   retouch devices --json | jq '.cards[].free_bytes'
///   retouch devices warm run.toml
///
/// A run file takes cards as `model.device`, `reward.device` and `learner.device`: "cuda:1", a list,
/// or "cuda:*" for all. `retouch model check FOLDER --device cuda:0` says whether a model fits.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, args_conflicts_with_subcommands = true)]
pub(crate) struct DevicesArgs {
    #[command(subcommand)]
    command: Option<DevicesCommand>,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum DevicesCommand {
    Warm(WarmArgs),
}

/// What is printed.
#[derive(Debug, Default, Serialize)]
struct Survey {
    build: Build,
    driver: Option<Driver>,
    cards: Vec<Card>,
    nccl: Option<Nccl>,
    /// NVIDIA's math functions, which kernels are linked with.
    libdevice: Option<PathBuf>,
    /// Where compiled and tuned kernels stay.
    cache: PathBuf,
    /// What is missing, a sentence each.
    missing: Vec<String>,
}

/// What this program was built with.
#[derive(Debug, Default, Clone, Copy, Serialize)]
struct Build {
    cuda: bool,
    nccl: bool,
    wgpu: bool,
}

impl Build {
    const OWN: Self = Self {
        cuda: cfg!(feature = "cuda"),
        nccl: cfg!(any(feature = "cuda", feature = "nccl")),
        wgpu: cfg!(feature = "wgpu"),
    };
}

#[derive(Debug, Serialize)]
struct Driver {
    /// NVIDIA's number of it, such as `580.65.06`, where the system tells.
    release: Option<String>,
    /// The CUDA version it is made for, such as `13.0`.
    cuda: String,
}

#[derive(Debug, Serialize)]
struct Card {
    /// Its name in run files.
    device: String,
    name: String,
    total_bytes: u64,
    /// None if the card can't be opened.
    free_bytes: Option<u64>,
    compute_capability: String,
    uuid: String,
}

#[derive(Debug, Serialize)]
struct Nccl {
    version: String,
    path: Option<PathBuf>,
}

pub(crate) fn run(args: DevicesArgs) -> anyhow::Result<()> {
    if let Some(DevicesCommand::Warm(args)) = args.command {
        return warm::run(args);
    }
    let survey = Survey::make();
    if args.json {
        return print_json(&survey);
    }
    survey.print();
    Ok(())
}

impl Survey {
    fn make() -> Self {
        let mut survey = Self {
            build: Build::OWN,
            cache: cache::folder(),
            ..Self::default()
        };
        survey.look_for_cards();
        survey.look_for_nccl();
        if survey.build.cuda {
            let found = libdevice::find();
            survey.libdevice = survey.or_missing("libdevice", found);
        }
        survey
    }

    /// The value; an error is noted.
    fn or_missing<T, E: std::fmt::Display>(
        &mut self,
        what: &str,
        found: Result<T, E>,
    ) -> Option<T> {
        found
            .map_err(|error| self.missing.push(format!("{what}: {error}")))
            .ok()
    }

    #[cfg(not(feature = "cuda"))]
    fn look_for_cards(&mut self) {
        self.or_missing("cards", cards::cards());
    }

    #[cfg(feature = "cuda")]
    fn look_for_cards(&mut self) {
        let Some(driver) = self.or_missing("driver", cards::driver()) else {
            return;
        };
        self.driver = Some(Driver {
            release: driver_release(),
            cuda: cards::version(driver.cuda),
        });
        let cards = self.or_missing("cards", driver.cards()).unwrap_or_default();
        if cards.is_empty() {
            self.missing.push(
                "cards: the driver finds none (CUDA_VISIBLE_DEVICES hides those it does not name)"
                    .into(),
            );
        }
        for card in cards {
            let device = format!("cuda:{}", card.index);
            let free_bytes = self.or_missing(&device, driver.free_bytes(card.index));
            let [major, minor] = card.compute_capability;
            self.cards.push(Card {
                device,
                name: card.name,
                total_bytes: card.total_bytes,
                free_bytes,
                compute_capability: format!("{major}.{minor}"),
                uuid: card.uuid,
            });
        }
    }

    #[cfg(not(any(feature = "cuda", feature = "nccl")))]
    fn look_for_nccl(&mut self) {}

    #[cfg(any(feature = "cuda", feature = "nccl"))]
    fn look_for_nccl(&mut self) {
        use retouch_learner::collective::nccl;

        let found = self.or_missing("nccl", nccl::find());
        self.nccl = found.map(|found| Nccl {
            version: nccl_version(found.version),
            path: found.path,
        });
    }

    fn print(&self) {
        let Build { cuda, nccl, wgpu } = self.build;
        let features = [("cuda", cuda), ("nccl", nccl), ("wgpu", wgpu)];
        let built: Vec<&str> = features
            .iter()
            .filter(|(_, has)| *has)
            .map(|(name, _)| *name)
            .collect();
        let built = match built.is_empty() {
            true => "for CPUs alone".to_owned(),
            false => format!("with {}", built.join(", ")),
        };
        say!("build      {built}");
        if let Some(Driver { release, cuda }) = &self.driver {
            let release = release.as_deref().unwrap_or("of unknown release");
            say!("driver     {release}, for CUDA {cuda}");
        }
        say!("devices    cpu");
        for card in &self.cards {
            let free = card.free_bytes.map_or("unknown".to_owned(), size);
            say!(
                "           {:<8} {}: {}, free {free}, compute capability {}",
                card.device,
                card.name,
                size(card.total_bytes),
                card.compute_capability
            );
        }
        if wgpu {
            say!("           wgpu     whatever adapter wgpu finds: for checks, not for training");
        }
        if let Some(Nccl { version, path }) = &self.nccl {
            let path = path.as_deref().map(|path| format!(", {}", path.display()));
            say!("nccl       {version}{}", path.unwrap_or_default());
        }
        if let Some(libdevice) = &self.libdevice {
            say!("libdevice  {}", libdevice.display());
        }
        say!("cache      {}", self.cache.display());
        self.missing
            .iter()
            .for_each(|missing| say!("missing    {missing}"));
    }
}

/// What the kernel module says; a container shows one of the files or the other.
#[cfg(feature = "cuda")]
fn driver_release() -> Option<String> {
    let module = std::fs::read_to_string("/sys/module/nvidia/version");
    let module = module.ok().map(|text| text.trim().to_owned());
    module.or_else(|| release_in(&std::fs::read_to_string("/proc/driver/nvidia/version").ok()?))
}

/// The first word that is a release: numbers with points between them.
#[cfg(any(feature = "cuda", test))]
fn release_in(text: &str) -> Option<String> {
    let is_release = |word: &&str| {
        let parts: Vec<&str> = word.split('.').collect();
        let number =
            |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        parts.len() > 1 && parts.iter().all(number)
    };
    text.split_whitespace().find(is_release).map(str::to_owned)
}

/// 2.30.7 for 23007.
#[cfg(any(feature = "cuda", feature = "nccl", test))]
fn nccl_version(number: u32) -> String {
    format!(
        "{}.{}.{}",
        number / 10_000,
        number / 100 % 100,
        number % 100
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_written_as_their_makers_do() {
        assert_eq!(nccl_version(23_007), "2.30.7");
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)\n";
        assert_eq!(release_in(text).as_deref(), Some("580.65.06"));
        assert_eq!(release_in("no driver here."), None);
    }

    #[test]
    fn a_machine_without_anything_is_told_so_and_nothing_panics() {
        let survey = Survey::make();
        let build = survey.build;
        // Nobody else links it.
        assert!(build.cuda || survey.libdevice.is_none());
        if !build.cuda {
            assert_eq!(
                survey.missing,
                ["cards: this build has no CUDA (cargo build --features cuda)"]
            );
        }
        survey.print();
        let json = serde_json::to_value(&survey).expect("JSON");
        assert_eq!(json["build"]["cuda"], build.cuda);
    }
}
