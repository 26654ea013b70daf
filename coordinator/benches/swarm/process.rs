//! The coordinator's process: started, measured, killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use retouch_proto::RunFolder;

/// A coordinator that has not left its address by then has not started.
const START_MAX: Duration = Duration::from_secs(60);

/// A running coordinator; killed with its owner.
pub(crate) struct Process {
    child: Child,
    folder: PathBuf,
}

impl Process {
    /// Starts one and waits for its address.
    pub(crate) async fn start(folder: &Path) -> Result<Self, String> {
        let address = RunFolder::new(folder).coordinator_address();
        let last = fs::metadata(&address).and_then(|file| file.modified()).ok();
        let child = Command::new(crate::own_path()?)
            .arg("coordinator")
            .arg(folder)
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("can't start the coordinator: {error}"))?;
        let process = Self {
            child,
            folder: folder.to_owned(),
        };
        let begun = Instant::now();
        while begun.elapsed() < START_MAX {
            let now = fs::metadata(&address).and_then(|file| file.modified()).ok();
            if now.is_some() && now != last {
                return Ok(process);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(format!(
            "the coordinator did not start within {START_MAX:?}"
        ))
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> Result<String, String> {
        let path = RunFolder::new(&self.folder).coordinator_address();
        fs::read_to_string(&path)
            .map(|address| format!("http://{}", address.trim()))
            .map_err(|error| format!("{}: {error}", path.display()))
    }

    /// `kill -9`, and nothing is left of it.
    pub(crate) fn kill(mut self) -> Result<(), String> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed
            .map(drop)
            .map_err(|error| format!("can't kill the coordinator: {error}"))
    }

    /// Processor time so far.
    pub(crate) fn cpu_s(&self) -> f64 {
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The second field is the name in parentheses; the 14th and 15th are user and system time in ticks of 10 ms.
        let fields = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let ticks = fields
            .skip(11)
            .take(2)
            .filter_map(|ticks| ticks.parse::<f64>().ok());
        ticks.sum::<f64>() / 100.0
    }

    /// Memory now and at most.
    pub(crate) fn memory_mib(&self) -> [f64; 2] {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        ["VmRSS:", "VmHWM:"].map(|name| {
            let line = status.lines().find(|line| line.starts_with(name));
            let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
            kib.unwrap_or(0.0) / 1024.0
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have been killed and waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
