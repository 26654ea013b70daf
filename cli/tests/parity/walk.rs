use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// The folders with a `case.toml` at or below each root, in the order of their paths.
///
/// # Errors
/// If a root can't be read or has no case: a mistyped path must not look like a passed test.
pub(crate) fn case_folders(roots: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for root in roots {
        let before = folders.len();
        collect(root, &mut folders)?;
        ensure!(
            folders.len() > before,
            "{}: no case.toml in or below it",
            root.display()
        );
        folders[before..].sort();
    }
    Ok(folders)
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if folder.join("case.toml").is_file() {
        found.push(folder.to_owned());
        return Ok(());
    }
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, found)?;
        }
    }
    Ok(())
}
