//! Every kernel that the double was given, assembled by NVIDIA's ptxas: a card's driver would take it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, ensure};

use super::FOLDER;
use crate::wheel;

const PACKAGE: &str = "nvidia-cuda-nvcc==13.0.88";
const PTXAS: &str = "nvidia/cu13/bin/ptxas";

/// What ptxas says of one kernel.
struct Verdict {
    entry: String,
    target: String,
    refusal: Option<String>,
    spilled_bytes: u64,
}

/// Assembles all files for the architectures that they name, and prints how many there are and which spill
/// registers.
///
/// # Errors
/// If ptxas refuses one, or there is none for one of the architectures.
pub(crate) fn assemble(
    root: &Path,
    files: &[PathBuf],
    architectures: &[&str],
) -> anyhow::Result<()> {
    let ptxas = wheel::file(&root.join(FOLDER).join("cuda"), PACKAGE, PTXAS)?;
    let verdicts = verdicts(&ptxas, files)?;
    for architecture in architectures {
        let of_it = || {
            verdicts
                .iter()
                .filter(|verdict| verdict.target == *architecture)
        };
        let spilling = of_it().filter(|verdict| verdict.spilled_bytes > 0);
        let count = of_it().count();
        println!(
            "ptxas: {count} kernels for {architecture}, {} spill registers",
            spilling.clone().count()
        );
        for verdict in spilling {
            println!("  {} bytes: {}", verdict.spilled_bytes, verdict.entry);
        }
        ensure!(count > 0, "no kernel was made for {architecture}");
    }
    let refused: Vec<_> = verdicts
        .iter()
        .filter_map(|v| Some((v, v.refusal.as_ref()?)))
        .collect();
    for (verdict, refusal) in &refused {
        println!(
            "  REFUSED {} for {}: {refusal}",
            verdict.entry, verdict.target
        );
    }
    ensure!(
        refused.is_empty(),
        "ptxas refuses {} of {} kernels",
        refused.len(),
        files.len()
    );
    Ok(())
}

fn verdicts(ptxas: &Path, files: &[PathBuf]) -> anyhow::Result<Vec<Verdict>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push(verdict(ptxas, file).with_context(|| file.display().to_string())?);
        }
        anyhow::Ok(done)
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.join().expect("no panic in it")?);
        }
        Ok(all)
    })
}

fn verdict(ptxas: &Path, file: &Path) -> anyhow::Result<Verdict> {
    let text = std::fs::read_to_string(file)?;
    let target = target(&text).context("it has no .target")?;
    let mut command = Command::new(ptxas);
    command
        .arg("--verbose")
        .arg(format!("--gpu-name={target}"))
        .arg(file);
    let output = command.args(["--output-file", "/dev/null"]).output();
    let output = output.context("can't run ptxas")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let lines = || said.lines().take(3).collect::<Vec<_>>().join("; ");
    Ok(Verdict {
        entry: entry(&text).chars().take(120).collect(),
        target: target.into(),
        refusal: (!output.status.success()).then(lines),
        spilled_bytes: spilled_bytes(&said),
    })
}

fn target(text: &str) -> Option<&str> {
    let line = text.lines().find_map(|line| line.strip_prefix(".target "));
    line?.split(',').next().map(str::trim)
}

fn entry(text: &str) -> &str {
    let name = text
        .split(".entry ")
        .nth(1)
        .and_then(|rest| rest.split('(').next());
    name.unwrap_or("?").trim()
}

fn spilled_bytes(said: &str) -> u64 {
    let parts = said
        .split([',', '\n'])
        .filter_map(|part| part.trim().strip_suffix(" bytes spill stores"));
    parts.filter_map(|bytes| bytes.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spills_are_summed_over_functions() {
        let said = "ptxas info    : Function properties for a\n    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n\
                    ptxas info    : Function properties for b\n    0 bytes stack frame, 12 bytes spill stores, 0 bytes spill loads\n";
        assert_eq!(spilled_bytes(said), 16);
    }

    #[test]
    fn target_and_entry_are_read() {
        let text = "//\n.version 9.0\n.target sm_90a, debug\n.address_size 64\n.visible .entry kernel_a(\n)";
        assert_eq!(target(text), Some("sm_90a"));
        assert_eq!(entry(text), "kernel_a");
        assert_eq!(target(".version 9.0"), None);
    }
}
