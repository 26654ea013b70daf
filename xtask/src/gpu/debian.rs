//! Packages of Debian, unpacked into a folder: nothing is installed, and no rights are needed.

use std::{path::Path, process::Command};

use anyhow::{Context, bail, ensure};

/// The version that would be installed, if there is the package.
pub(crate) fn candidate(package: &str) -> anyhow::Result<Option<String>> {
    let output = run(Command::new("apt-cache").args(["policy", package]))?;
    let line = output
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(line.filter(|version| *version != "(none)").map(Into::into))
}

/// Packages, and all that they depend on that this machine lacks.
pub(crate) fn missing(packages: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut plan = Command::new("apt-get");
    plan.args(["install", "--simulate", "--no-install-recommends"]);
    Ok(new_packages(&run(plan.args(packages))?))
}

/// Of the lines of `apt-get install --simulate`, those of packages that are not there in any version:
/// `Inst NAME (VERSION ...)`. An upgrade is `Inst NAME [OLD] (VERSION ...)`.
fn new_packages(plan: &str) -> Vec<String> {
    let lines = plan.lines().filter_map(|line| line.strip_prefix("Inst "));
    let new = lines.filter_map(|line| line.split_once(" ("));
    let names = new.map(|(name, _)| name).filter(|name| !name.contains('['));
    names.map(Into::into).collect()
}

/// Downloads packages and unpacks them beside one another below the folder.
pub(crate) fn unpack(packages: &[String], folder: &Path) -> anyhow::Result<()> {
    let download = folder.join("deb");
    std::fs::create_dir_all(&download)?;
    println!("> apt-get download {}", packages.join(" "));
    let mut fetch = Command::new("apt-get");
    // Without this, root's downloads warn that `_apt` may not write here.
    fetch.args(["-q", "-o", "APT::Sandbox::User=root", "download"]);
    run(fetch.args(packages).current_dir(&download))?;
    for entry in std::fs::read_dir(&download)? {
        run(Command::new("dpkg")
            .arg("-x")
            .arg(entry?.path())
            .arg(folder))?;
    }
    Ok(std::fs::remove_dir_all(download)?)
}

/// Makes sure that there are package lists: fresh containers have none.
pub(crate) fn update_lists(needed: &str) -> anyhow::Result<()> {
    if candidate(needed)?.is_none() {
        println!("> apt-get update");
        run(Command::new("apt-get").args(["-q", "update"]))?;
    }
    let found = candidate(needed)?.is_some();
    ensure!(
        found,
        "Debian has no package {needed} here (Debian 12 or newer has it)"
    );
    Ok(())
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output();
    let output = output.with_context(|| format!("can't run {program}; is this Debian?"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{program} failed: {}", error.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upgrades_are_not_new_packages() {
        let plan = "\
NOTE: This is only a simulation!
Inst libgbm1 [22.3.6-1+deb12u1] (22.3.6-1+deb12u2 Debian:12.15/oldstable [amd64]) []
Inst libvulkan1 (1.3.239.0-1 Debian:12.15/oldstable [amd64])
Inst mesa-vulkan-drivers (22.3.6-1+deb12u2 Debian:12.15/oldstable [amd64])
Conf libvulkan1 (1.3.239.0-1 Debian:12.15/oldstable [amd64])";
        assert_eq!(new_packages(plan), ["libvulkan1", "mesa-vulkan-drivers"]);
    }
}
