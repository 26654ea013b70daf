//! What is added up over all launches of one run: a resumed run's wall clock is the sum of its parts.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use anyhow::Context;
use retouch_proto::{
    RunFolder,
    files::{PUBLIC, write_whole},
};
use serde::{Deserialize, Serialize};

/// Sums and peaks over the launches of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Totals {
    pub(crate) launches: u32,
    pub(crate) wall_s: f64,
    pub(crate) peak_rss_mib: f64,
}

/// The training part of a launch that is under way.
pub(crate) struct Launch {
    folder: RunFolder,
    /// Without this launch.
    before: Totals,
    started: Instant,
    peak_kib: Cell<u64>,
}

impl Launch {
    /// Begins now.
    pub(crate) fn begin(folder: &RunFolder) -> anyhow::Result<Self> {
        Ok(Self {
            folder: folder.clone(),
            before: Totals::load(folder)?,
            started: Instant::now(),
            peak_kib: Cell::new(0),
        })
    }

    /// Notes that all processes together had this much memory.
    pub(crate) fn saw_memory(&self, kib: u64) {
        self.peak_kib.set(self.peak_kib.get().max(kib));
    }

    /// The totals as of now.
    pub(crate) fn totals(&self) -> Totals {
        self.before
            .and_launch(self.started.elapsed(), self.peak_kib.get())
    }

    /// Writes down the totals as of now: said often enough, they hold even if the launch is killed.
    pub(crate) fn save(&self) -> anyhow::Result<()> {
        self.totals().save(&self.folder).map(drop)
    }
}

impl Totals {
    fn and_launch(mut self, wall: Duration, peak_kib: u64) -> Self {
        self.launches += 1;
        self.wall_s += wall.as_secs_f64();
        self.raise_peak(peak_kib);
        self
    }

    /// Adds an evaluation by this process.
    pub(crate) fn add_evaluation(
        folder: &RunFolder,
        wall_s: f64,
        peak_kib: u64,
    ) -> anyhow::Result<Self> {
        let mut totals = Self::load(folder)?;
        totals.wall_s += wall_s;
        totals.raise_peak(peak_kib);
        totals.save(folder)
    }

    fn raise_peak(&mut self, peak_kib: u64) {
        self.peak_rss_mib = self.peak_rss_mib.max(peak_kib as f64 / 1024.0);
    }

    pub(crate) fn load(folder: &RunFolder) -> anyhow::Result<Self> {
        let file = folder.launches();
        match std::fs::read_to_string(&file) {
            Ok(text) => {
                serde_json::from_str(&text).with_context(|| format!("{} is broken", file.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("can't read {}", file.display())),
        }
    }

    fn save(self, folder: &RunFolder) -> anyhow::Result<Self> {
        let file = folder.launches();
        write_whole(&file, serde_json::to_string(&self)?, PUBLIC)
            .with_context(|| format!("can't write {}", file.display()))?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_add_up_and_the_peak_is_the_highest() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let folder = RunFolder::new(place.path());
        // The first launch is killed after it was written down twice.
        let first = Totals::load(&folder).expect("nothing yet");
        for (seconds, kib) in [(4, 512), (10, 2048)] {
            let so_far = first.and_launch(Duration::from_secs(seconds), kib);
            so_far.save(&folder).expect("written");
        }
        let second = Totals::load(&folder).expect("written");
        let second = second.and_launch(Duration::from_secs(5), 1024);
        second.save(&folder).expect("written");
        let totals = Totals::add_evaluation(&folder, 1.5, 3072).expect("written");
        assert_eq!(
            totals,
            Totals {
                launches: 2,
                wall_s: 16.5,
                peak_rss_mib: 3.0
            }
        );
    }
}
