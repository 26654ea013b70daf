//! Where chaos takes place: what all runs share, and what this machine allows.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};

/// More than a run's folder ever holds.
const DISK_SIZE: &str = "size=192m";
const CHUNK: usize = 1 << 20;

/// What all runs share.
#[derive(Debug)]
pub(crate) struct Place {
    /// The binary under test.
    pub(crate) retouch: PathBuf,
    /// A folder with dataset, editor and judge: `assets/tiny`.
    pub(crate) assets: PathBuf,
    /// Each run gets a folder of its own below it.
    pub(crate) folder: PathBuf,
    /// The library that sets clocks wrong, if it could be built.
    pub(crate) clock: Option<PathBuf>,
    /// Whether file systems can be mounted.
    pub(crate) disks: bool,
}

impl Place {
    /// Builds the library that sets clocks wrong.
    pub(crate) fn build_clock(&mut self, source: &Path) -> anyhow::Result<()> {
        let library = self.folder.join("clock.so");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"]);
        execute(cc.arg(&library).arg(source))?;
        self.clock = Some(library);
        Ok(())
    }

    /// Finds out whether file systems can be mounted.
    pub(crate) fn try_disks(&mut self) -> anyhow::Result<()> {
        let folder = self.folder.join("disk");
        Disk::mount(&folder)?;
        self.disks = true;
        Ok(())
    }
}

/// A small disk.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: PathBuf,
}

impl Disk {
    pub(crate) fn mount(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", DISK_SIZE, "chaos"]);
        execute(mount.arg(folder))?;
        let folder = folder.to_owned();
        Ok(Self { folder })
    }

    /// Leaves no byte free.
    pub(crate) fn fill(&self) -> std::io::Result<()> {
        let mut file = std::fs::File::create(self.ballast())?;
        for chunk in [&[0; CHUNK][..], &[0; 4096], &[0]] {
            while std::io::Write::write_all(&mut file, chunk).is_ok() {}
        }
        Ok(())
    }

    pub(crate) fn free(&self) -> std::io::Result<()> {
        std::fs::remove_file(self.ballast())
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open there is about to end.
        let _ = execute(Command::new("umount").arg("--lazy").arg(&self.folder));
    }
}

/// Runs a command that says nothing unless it fails.
pub(crate) fn execute(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("can't run {name}"))?;
    let problem = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", problem.trim());
    Ok(())
}
