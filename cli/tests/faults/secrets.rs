//! What must stay secret does not show in a run's logs, command lines or environment.

use std::path::{Path, PathBuf};

use crate::harness::run::Run;

#[test]
fn no_secret_is_logged_or_shown_in_a_command_line() {
    let mut run = Run::launch(&[]);
    run.wait_for(|status| status["committed"].as_u64() >= Some(1));
    let secrets = secrets(&run.path().join("run/credentials"));
    assert!(secrets.len() >= 10, "{}", secrets.len());
    for name in [
        "coordinator",
        "learner-0",
        "rollout-worker-0",
        "reward-worker-0",
    ] {
        let Some(pid) = run.find_process(name) else {
            continue;
        };
        for file in ["cmdline", "environ"] {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            refuse(&secrets, &text, &format!("{file} of {name}"));
        }
    }
    run.finish_well();
    let logs = files_below(&run.path().join("run/logs"));
    assert!(logs.len() >= 6, "{logs:?}");
    let reports = ["report.json", "report.html", "config.toml", "run.db"];
    let reports = reports.map(|name| run.path().join("run").join(name));
    for file in logs.into_iter().chain(reports) {
        let text =
            std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        refuse(&secrets, &text, &file.display().to_string());
    }
}

fn refuse(secrets: &[String], text: &[u8], place: &str) {
    let text = String::from_utf8_lossy(text);
    let found = secrets.iter().any(|secret| text.contains(secret.as_str()));
    assert!(!found, "a secret is in {place}");
}

/// The lines of all keys, and the secret part of all tokens.
fn secrets(folder: &Path) -> Vec<String> {
    let mut secrets = Vec::new();
    for file in files_below(folder) {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let text = std::fs::read_to_string(&file).expect("a small file");
        if name == "ca.key" || name == "key.pem" {
            let lines = text.lines().filter(|line| !line.starts_with("---"));
            secrets.extend(lines.filter(|line| line.len() > 30).map(str::to_owned));
        } else if name == "token" || name == "secret" {
            secrets.extend(text.trim().rsplit('.').next().map(str::to_owned));
        }
    }
    secrets
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let (folders, files): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
    let below = folders.iter().flat_map(|folder| files_below(folder));
    files.into_iter().chain(below).collect()
}
