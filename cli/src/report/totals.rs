//! What is added up over all launches of one run: a resumed run's wall clock is the sum of its parts.

use std::{path::Path, time::Duration};

use anyhow::Context;
use serde::{Deserialize, Serialize};

const FILE: &str = "launches.json";

/// Sums and peaks over the launches of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Totals {
    pub(crate) launches: u32,
    pub(crate) wall_s: f64,
    pub(crate) peak_rss_mib: f64,
}

impl Totals {
    /// Adds the training part of a launch, interrupted ones included.
    pub(crate) fn add_launch(
        run_dir: &Path,
        wall: Duration,
        peak_kib: u64,
    ) -> anyhow::Result<Self> {
        let mut totals = Self::load(run_dir)?;
        totals.launches += 1;
        totals.wall_s += wall.as_secs_f64();
        totals.raise_peak(peak_kib);
        totals.save(run_dir)
    }

    /// Adds an evaluation by this process.
    pub(crate) fn add_evaluation(
        run_dir: &Path,
        wall_s: f64,
        peak_kib: u64,
    ) -> anyhow::Result<Self> {
        let mut totals = Self::load(run_dir)?;
        totals.wall_s += wall_s;
        totals.raise_peak(peak_kib);
        totals.save(run_dir)
    }

    fn raise_peak(&mut self, peak_kib: u64) {
        self.peak_rss_mib = self.peak_rss_mib.max(peak_kib as f64 / 1024.0);
    }

    fn load(run_dir: &Path) -> anyhow::Result<Self> {
        let file = run_dir.join(FILE);
        match std::fs::read_to_string(&file) {
            Ok(text) => {
                serde_json::from_str(&text).with_context(|| format!("{} is broken", file.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("can't read {}", file.display())),
        }
    }

    fn save(self, run_dir: &Path) -> anyhow::Result<Self> {
        let file = run_dir.join(FILE);
        std::fs::write(&file, serde_json::to_string(&self)?)
            .with_context(|| format!("can't write {}", file.display()))?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_add_up_and_the_peak_is_the_highest() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Totals::add_launch(folder.path(), Duration::from_secs(10), 2048).expect("written");
        Totals::add_launch(folder.path(), Duration::from_secs(5), 1024).expect("written");
        let totals = Totals::add_evaluation(folder.path(), 1.5, 3072).expect("written");
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
