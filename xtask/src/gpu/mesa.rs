//! Vulkan on the CPU: Mesa's lavapipe, so that wgpu's kernels run on machines without a GPU.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::debian;

const PACKAGES: [&str; 2] = ["mesa-vulkan-drivers", "libvulkan1"];

/// Mesa below `target/gpu`, fetched once.
pub(crate) struct Mesa {
    folder: PathBuf,
}

impl Mesa {
    pub(crate) fn get(root: &Path) -> anyhow::Result<Self> {
        let folder = root.join("target/gpu/mesa");
        let mesa = Self { folder };
        if !mesa.driver_file().is_file() {
            mesa.fetch().context("can't fetch Mesa's software Vulkan")?;
        }
        Ok(mesa)
    }

    fn fetch(&self) -> anyhow::Result<()> {
        debian::update_lists(PACKAGES[0])?;
        let mut packages = debian::missing(&PACKAGES)?;
        // Those that are installed already are wanted here too: one place for the loader to look.
        let known: Vec<&str> = PACKAGES
            .into_iter()
            .filter(|p| !packages.iter().any(|q| q == p))
            .collect();
        packages.extend(known.into_iter().map(Into::into));
        debian::unpack(&packages, &self.folder)?;
        // The package's own file names a path below `/`.
        let driver = self.libraries().join("libvulkan_lvp.so");
        let description = serde_json::json!({
            "file_format_version": "1.0.0",
            "ICD": { "library_path": driver, "api_version": "1.3.230" },
        });
        Ok(std::fs::write(self.driver_file(), description.to_string())?)
    }

    fn libraries(&self) -> PathBuf {
        self.folder
            .join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH))
    }

    /// What the Vulkan loader reads.
    fn driver_file(&self) -> PathBuf {
        self.folder.join("driver.json")
    }

    /// What makes programs find this driver, and no other.
    pub(crate) fn environment(&self) -> [(&'static str, String); 3] {
        let driver = self.driver_file().display().to_string();
        // Two names: the loader of Debian 12 knows the old one alone.
        [
            ("VK_ICD_FILENAMES", driver.clone()),
            ("VK_DRIVER_FILES", driver),
            ("LD_LIBRARY_PATH", super::library_path(&self.libraries())),
        ]
    }
}
