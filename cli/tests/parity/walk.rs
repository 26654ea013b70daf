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

/// The folders whose names contain one of the comma separated parts of `only`; all of them if that is empty.
///
/// # Errors
/// If there are none: a mistyped name must not look like a passed test.
pub(crate) fn selected(mut folders: Vec<PathBuf>, only: &str) -> anyhow::Result<Vec<PathBuf>> {
    let parts: Vec<&str> = only.split(',').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Ok(folders);
    }
    folders.retain(|folder| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        parts.iter().any(|part| name.contains(part))
    });
    ensure!(
        !folders.is_empty(),
        "no case has a name with any of {only:?}"
    );
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
