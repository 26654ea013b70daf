//! Programs on the driver double (`tools/gpu/double`), and what it counted.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::{FOLDER, build, library_path};
use crate::wheel;

/// The functions that kernels call for exp, sin and the like: cubecl links them from here.
const LIBDEVICE_PACKAGE: &str = "nvidia-nvvm==13.0.88";
const LIBDEVICE: &str = "nvidia/cu13/nvvm/libdevice/libdevice.10.bc";
/// Of so many launches, one may be more or less in another run.
const LAUNCHES_APART: u64 = 500;
/// Where CUDA is, for cubecl, below the folder of packages.
const CUDA: &str = "nvidia/cu13";
const SOURCES: [&str; 5] = ["cards.c", "launch.c", "memory.c", "report.c", "setup.c"];

/// The double, built, and what programs need beside it.
pub(crate) struct Double {
    library: PathBuf,
    cuda: PathBuf,
    /// Tuned and compiled kernels stay here from run to run.
    cache: PathBuf,
}

/// One program on it.
pub(crate) struct Program<'a> {
    pub(crate) name: &'a str,
    pub(crate) command: Command,
    /// Where counts and PTX land; emptied first.
    pub(crate) folder: PathBuf,
    pub(crate) limit: Duration,
    pub(crate) end: End,
}

/// How a program has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Well,
    /// As zeros for results make it end: with this in its last line.
    Failure(&'static str),
}

/// What a program and its children asked of the driver, added up.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) launches: u64,
    pub(crate) graph_launches: u64,
    /// Of streams, events and contexts: the host waited.
    pub(crate) syncs: u64,
    pub(crate) host_to_device: u64,
    pub(crate) device_to_host: u64,
    pub(crate) device_to_device: u64,
    pub(crate) memsets: u64,
    pub(crate) modules: u64,
    /// Launches and allocations that the driver refuses.
    pub(crate) refused: u64,
    /// The most that all processes had of one card, contexts included.
    pub(crate) card_bytes_peak: u64,
    pub(crate) processes: u64,
    pub(crate) seconds: f64,
}

impl Double {
    pub(crate) fn get(root: &Path) -> anyhow::Result<Self> {
        let folder = root.join(FOLDER);
        let packages = folder.join("cuda");
        libdevice(root)?;
        let double = Self {
            library: folder.join("lib/libcuda.so.1"),
            cuda: packages.join(CUDA),
            cache: folder.join("double/cache"),
        };
        double.compile(&root.join("tools/gpu/double"))?;
        std::fs::create_dir_all(&double.cache)?;
        Ok(double)
    }

    /// A second of work: it is built every time.
    fn compile(&self, sources: &Path) -> anyhow::Result<()> {
        let folder = self.library.parent().context("it has a folder")?;
        std::fs::create_dir_all(folder)?;
        // A running program keeps the file that it has open.
        let partial = self.library.with_extension("partial");
        compile(sources, &SOURCES, &["-shared", "-fPIC"], &partial)?;
        Ok(std::fs::rename(partial, &self.library)?)
    }

    /// Whether it keeps to its own rules.
    pub(crate) fn test(&self, root: &Path) -> anyhow::Result<()> {
        let folder = root.join(FOLDER).join("double/test");
        clear(&folder)?;
        let program = folder.join("test");
        let sources = [&SOURCES[..], &["test.c"]].concat();
        compile(&root.join("tools/gpu/double"), &sources, &[], &program)?;
        let mut test = Command::new(program);
        test.env("RETOUCH_DOUBLE_DIR", &folder)
            .env("RETOUCH_DOUBLE_DEVICES", "2");
        let output = test.output().context("can't run the double's test")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "the driver double is wrong:\n{said}"
        );
        print!("{}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    /// Where its kernels stay; a fresh one makes every process tune and compile.
    pub(crate) fn with_cache(mut self, cache: PathBuf) -> Self {
        self.cache = cache;
        self
    }

    /// The environment of a program on it.
    pub(super) fn apply(&self, command: &mut Command, folder: &Path) {
        let libraries = self.library.parent().unwrap_or(Path::new("."));
        command
            .env("LD_LIBRARY_PATH", library_path(libraries))
            .env("CUDA_PATH", &self.cuda)
            .env("RETOUCH_CACHE", &self.cache)
            .env("RETOUCH_DOUBLE_DIR", folder);
    }

    /// Runs a program to its end, and adds up what was counted.
    ///
    /// # Errors
    /// If it fails, or is not done within its limit.
    pub(crate) fn run(&self, program: Program<'_>) -> anyhow::Result<Counts> {
        let Program {
            name,
            mut command,
            folder,
            limit,
            end,
        } = program;
        clear(&folder)?;
        self.apply(&mut command, &folder);
        let log = folder.join("stderr");
        command
            .stdout(std::fs::File::create(folder.join("stdout"))?)
            .stderr(std::fs::File::create(&log)?);
        let began = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("can't run {command:?}"))?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if began.elapsed() > limit {
                child.kill()?;
                child.wait()?;
                bail!(
                    "{name}: not done after {} s; {}",
                    limit.as_secs(),
                    log.display()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let text = std::fs::read_to_string(&log)?;
        let lines: Vec<&str> = text.lines().collect();
        let is_right = match end {
            End::Well => status.success(),
            End::Failure(part) => {
                !status.success() && lines.last().is_some_and(|line| line.contains(part))
            }
        };
        if !is_right {
            let last = lines[lines.len().saturating_sub(20)..].join("\n");
            bail!(
                "{name}: {status}; {}, which ends with\n{last}",
                log.display()
            );
        }
        let mut counts = counts(&reports(&folder)?)?;
        counts.seconds = began.elapsed().as_secs_f64();
        Ok(counts)
    }
}

fn compile(folder: &Path, sources: &[&str], options: &[&str], to: &Path) -> anyhow::Result<()> {
    let mut compiler = Command::new("cc");
    compiler.args([
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pthread",
        "-o",
    ]);
    compiler.arg(to).args(options);
    compiler.args(sources.iter().map(|source| folder.join(source)));
    let status = compiler.status().context("can't run cc, a C compiler")?;
    ensure!(status.success(), "cc can't build the driver double");
    Ok(())
}

pub(super) fn libdevice(root: &Path) -> anyhow::Result<PathBuf> {
    wheel::file(
        &root.join(FOLDER).join("cuda"),
        LIBDEVICE_PACKAGE,
        LIBDEVICE,
    )
}

/// A program given on the command line, with its own output, and a table of what it did.
pub(crate) fn command(root: &Path, devices: u32, program: &[&str]) -> anyhow::Result<()> {
    let (name, arguments) = program
        .split_first()
        .context("double needs a program to run")?;
    let name = match *name {
        "retouch" => build::built(root)?,
        other => other.into(),
    };
    let double = Double::get(root)?;
    let folder = root.join(FOLDER).join("double/last");
    clear(&folder)?;
    let mut command = Command::new(name);
    command
        .args(arguments)
        .env("RETOUCH_DOUBLE_DEVICES", devices.to_string());
    double.apply(&mut command, &folder);
    let status = command
        .status()
        .with_context(|| format!("can't run {command:?}"))?;
    print_reports(&reports(&folder)?)?;
    println!("counts and PTX: {}", folder.display());
    ensure!(status.success(), "the program failed: {status}");
    Ok(())
}

impl Counts {
    /// Whether another run asked the same. Loading kernels, and what goes up with them, depends on threads and time; so does, in
    /// one run of many, whether burn's fusion takes one more op into a kernel.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let waits = |counts: &Self| [counts.syncs, counts.device_to_host, counts.memsets];
        let few = self.launches / LAUNCHES_APART;
        waits(self) == waits(other) && self.launches.abs_diff(other.launches) <= few
    }
}

/// The PTX of a folder, each kept once.
pub(crate) fn ptx(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    files(folder, "ptx")
}

fn reports(folder: &Path) -> anyhow::Result<Vec<Value>> {
    let read = |path: &PathBuf| Ok(serde_json::from_slice(&std::fs::read(path)?)?);
    files(folder, "json")?.iter().map(read).collect()
}

fn files(folder: &Path, extension: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

pub(super) fn clear(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    Ok(std::fs::create_dir_all(folder)?)
}

fn counts(reports: &[Value]) -> anyhow::Result<Counts> {
    let mut sum = Counts::default();
    for report in reports {
        let at = |pointer: &str| {
            let value = report.pointer(pointer).and_then(Value::as_u64);
            value.with_context(|| format!("a report of the double has no {pointer}"))
        };
        sum.launches += at("/launches")?;
        sum.graph_launches += at("/graphs/launched")?;
        sum.syncs += at("/syncs/stream")? + at("/syncs/event")? + at("/syncs/context")?;
        sum.host_to_device += at("/copies/h2d")?;
        sum.device_to_host += at("/copies/d2h")?;
        sum.device_to_device += at("/copies/d2d")?;
        sum.memsets += at("/memsets/count")?;
        sum.modules += at("/modules")?;
        sum.refused += at("/refused")?;
        sum.processes += 1;
        for device in report["devices"].as_array().into_iter().flatten() {
            sum.refused += device["refused"].as_u64().unwrap_or(0);
            let peak = device["card_bytes_peak"].as_u64().unwrap_or(0);
            sum.card_bytes_peak = sum.card_bytes_peak.max(peak);
        }
    }
    Ok(sum)
}

fn print_reports(reports: &[Value]) -> anyhow::Result<()> {
    for report in reports {
        let Counts {
            launches,
            syncs,
            host_to_device,
            device_to_host,
            modules,
            refused,
            ..
        } = counts(std::slice::from_ref(report))?;
        println!("\n{}", report["command"].as_str().unwrap_or("?"));
        println!(
            "  {launches} launches, {syncs} syncs, {host_to_device} copies to the device and {device_to_host} back, {modules} kernels loaded, {refused} refused"
        );
        for device in report["devices"].as_array().into_iter().flatten() {
            let gib = |name: &str| device[name].as_u64().unwrap_or(0) as f64 / f64::from(1 << 30);
            println!(
                "  cuda:{}: {:.2} GiB at most, {:.2} GiB at the end; the card had {:.2} GiB at most",
                device["ordinal"],
                gib("bytes_peak"),
                gib("bytes"),
                gib("card_bytes_peak"),
            );
        }
        for (name, launches) in hottest(report) {
            println!("  {launches:>9}  {name}");
        }
    }
    Ok(())
}

/// The kernels launched most often, with their names cut to a line.
fn hottest(report: &Value) -> Vec<(String, u64)> {
    let mut sums = std::collections::BTreeMap::<String, u64>::new();
    for kernel in report["kernels"].as_array().into_iter().flatten() {
        let name: String = kernel["name"]
            .as_str()
            .unwrap_or("?")
            .chars()
            .take(100)
            .collect();
        *sums.entry(name).or_default() += kernel["launches"].as_u64().unwrap_or(0);
    }
    let mut kernels: Vec<_> = sums.into_iter().collect();
    kernels.sort_by_key(|(_, launches)| std::cmp::Reverse(*launches));
    kernels.truncate(10);
    kernels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_added_and_cards_are_not() {
        let report = |launches: u64, peak: u64| {
            serde_json::json!({
                "launches": launches, "refused": 0, "modules": 2,
                "syncs": {"stream": 1, "event": 2, "context": 3},
                "copies": {"h2d": 4, "d2h": 5, "d2d": 6}, "memsets": {"count": 7}, "graphs": {"launched": 0},
                "devices": [{"refused": 1, "card_bytes_peak": peak}],
            })
        };
        let sum = counts(&[report(10, 100), report(20, 70)]).expect("they are whole");
        assert_eq!((sum.launches, sum.syncs, sum.refused), (30, 12, 2));
        assert_eq!((sum.card_bytes_peak, sum.processes), (100, 2));
        let error = counts(&[serde_json::json!({})]).expect_err("it is empty");
        assert!(error.to_string().contains("/launches"), "{error}");
    }
}
