//! The processes of one run: found by their command lines, since `launch` starts them.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::Context;
use nix::{
    sys::{
        prctl,
        signal::{Signal as Unix, kill, killpg},
    },
    unistd::Pid,
};

use super::plan::{Signal, Victim};

const ROLES: [&str; 4] = ["coordinator", "rollout-worker", "reward-worker", "learner"];

/// A process of a run that `launch` started.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    /// The name that `launch` gave it.
    pub(crate) name: String,
}

/// One life of `launch`, in a process group of its own; it ends with this value.
#[derive(Debug)]
pub(crate) struct Launch {
    child: Child,
}

impl Launch {
    pub(crate) fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)?;
        command.stdin(Stdio::null()).process_group(0);
        command.stdout(log.try_clone()?).stderr(log);
        // SAFETY: the one call that is made between fork and exec is a system call.
        unsafe {
            command.pre_exec(|| Ok(prctl::set_pdeathsig(Unix::SIGKILL)?));
        }
        let child = command.spawn().context("can't start retouch")?;
        Ok(Self { child })
    }

    pub(crate) fn try_wait(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Whether there was someone to send it to.
    pub(crate) fn signal(&self, folder: &Path, victim: Victim, signal: Unix) -> bool {
        match victim {
            Victim::Launch => kill(self.pid(), signal).is_ok(),
            Victim::Everyone => {
                // The group of `launch` is its own alone. It comes first, lest it start what has just ended.
                let launch = killpg(self.pid(), signal).is_ok();
                signal_all(folder, signal);
                launch
            }
            _ => {
                let name = victim.to_string();
                let processes = processes(folder);
                let process = processes.iter().find(|process| process.name == name);
                process.is_some_and(|process| kill(process.pid, signal).is_ok())
            }
        }
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let _ = killpg(self.pid(), Unix::SIGKILL);
        let _ = self.child.wait();
    }
}

impl From<Signal> for Unix {
    fn from(signal: Signal) -> Self {
        match signal {
            Signal::Kill => Self::SIGKILL,
            Signal::Term => Self::SIGTERM,
            Signal::Hup => Self::SIGHUP,
            Signal::Int => Self::SIGINT,
        }
    }
}

/// Sends a signal to all processes of the run in this folder but `launch`.
pub(crate) fn signal_all(folder: &Path, signal: Unix) {
    for process in processes(folder) {
        // One that has ended meanwhile is as good.
        let _ = kill(process.pid, signal);
    }
}

/// All processes of the run in this folder but `launch`.
pub(crate) fn processes(folder: &Path) -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| process(entry.path(), folder))
        .collect()
}

fn process(entry: PathBuf, folder: &Path) -> Option<Process> {
    let pid = entry.file_name()?.to_str()?.parse().ok()?;
    let line = std::fs::read(entry.join("cmdline")).ok()?;
    let line = String::from_utf8_lossy(&line);
    let name = name(&line, folder)?;
    let pid = Pid::from_raw(pid);
    Some(Process { pid, name })
}

/// The name of a process with this command line, if it plays a role in the run of this folder.
fn name(line: &str, folder: &Path) -> Option<String> {
    let words: Vec<&str> = line.split('\0').collect();
    let role = words.get(1).filter(|role| ROLES.contains(role))?;
    let is_ours = words.iter().any(|word| Path::new(word).starts_with(folder));
    let name = words.iter().position(|word| *word == "--name");
    let name = name.and_then(|at| words.get(at + 1));
    is_ours.then(|| (*name.unwrap_or(role)).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_known_by_role_name_and_folder() {
        let name = |line: &str| name(&line.replace(' ', "\0"), Path::new("/c/seed-1"));
        assert_eq!(
            name("/b/retouch coordinator /c/seed-1/run/config.toml --parent 7").as_deref(),
            Some("coordinator")
        );
        assert_eq!(
            name(
                "/b/retouch learner --coordinator /c/seed-1/run/coordinator.addr --name learner-1"
            )
            .as_deref(),
            Some("learner-1")
        );
        assert_eq!(
            name("/b/retouch coordinator /c/seed-11/run/config.toml"),
            None
        );
        assert_eq!(name("/b/retouch drain /c/seed-1/run learner-1"), None);
    }
}
