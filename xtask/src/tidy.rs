//! Checks of the source tree that no lint makes. Each problem is one line: file, line, what is wrong.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::circles;

/// A longer file is more than one concept.
const LINES_MAX: usize = 600;

/// Words that say "later"; clippy knows the macros but not the comments.
const LEFTOVERS: [&str; 3] = [
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("TO", "DO"),
];

/// A1: what the coordinator's sans-IO machine may not name.
const MACHINE_BANS: [&str; 7] = [
    "async fn",
    ".await",
    "Instant::now",
    "SystemTime",
    "std::fs",
    "tokio::",
    "rusqlite",
];

/// A2: generated protobuf types are named only in proto/ and in files called `<whose>_grpc.rs`.
const GENERATED: &str = "retouch_proto::grpc";

pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    let mut files = Vec::new();
    collect_rust_files(root, &mut files)?;
    let mut problems = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("can't read {}", file.display()))?;
        check_file(
            file.strip_prefix(root).unwrap_or(file),
            &text,
            &mut problems,
        );
    }
    problems.extend(circles::problems(root, &files).context("can't read the sources")?);
    if !problems.is_empty() {
        bail!("{} tidy problems:\n{}", problems.len(), problems.join("\n"));
    }
    println!("tidy: {} files, no problem", files.len());
    Ok(())
}

fn collect_rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in
        std::fs::read_dir(folder).with_context(|| format!("can't list {}", folder.display()))?
    {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" && name != "runs" {
            collect_rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn check_file(path: &Path, text: &str, problems: &mut Vec<String>) {
    let shown = path.display();
    let lines = text.lines().count();
    if lines > LINES_MAX {
        problems.push(format!(
            "{shown}: {lines} lines, more than {LINES_MAX}: split by concept"
        ));
    }
    let bans = banned_words(path);
    for (index, line) in text.lines().enumerate() {
        for ban in bans.iter().filter(|ban| has(line, ban)) {
            problems.push(format!(
                "{shown}:{}: {ban:?} does not belong here",
                index + 1
            ));
        }
    }
}

/// Whether a line has this text, and not as the beginning of a longer name.
fn has(line: &str, text: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(text).any(|(at, _)| {
        let after = line[at + text.len()..].chars().next();
        !(text.ends_with(is_name) && after.is_some_and(is_name))
    })
}

fn banned_words(path: &Path) -> Vec<&'static str> {
    let mut bans = LEFTOVERS.to_vec();
    if path.starts_with("coordinator/src/machine") {
        bans.extend(MACHINE_BANS);
    }
    if !path.starts_with("proto")
        && path
            .file_name()
            .is_some_and(|name| !name.to_string_lossy().ends_with("_grpc.rs"))
        && !path.starts_with("xtask")
    {
        bans.push(GENERATED);
    }
    bans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, text: &str) -> Vec<String> {
        let mut problems = Vec::new();
        check_file(Path::new(path), text, &mut problems);
        problems
    }

    #[test]
    fn the_machine_may_not_look_at_a_clock() {
        let text = "let now = std::time::Instant::now();";
        assert_eq!(problems("coordinator/src/machine/groups.rs", text).len(), 1);
        assert!(problems("coordinator/src/shell.rs", text).is_empty());
        let path = "coordinator/src/machine/recovery.rs";
        assert_eq!(problems(path, "self.next().await;").len(), 1);
        assert!(problems(path, "self.await_holders();").is_empty());
    }

    #[test]
    fn long_files_and_generated_types_are_found() {
        assert_eq!(problems("worker/src/a.rs", &"\n".repeat(601)).len(), 1);
        assert_eq!(
            problems("worker/src/session.rs", "use retouch_proto::grpc;").len(),
            1
        );
        assert!(problems("worker/src/blobs_grpc.rs", "use retouch_proto::grpc;").is_empty());
    }
}
