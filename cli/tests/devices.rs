//! `retouch devices`, and devices that a run asks for in vain.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn retouch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("retouch starts")
}

fn run_file(folder: &Path, text: &str) -> String {
    let file = folder.join("run.toml");
    let run_dir = folder.join("run");
    let text = format!("preset = \"tiny\"\nrun_dir = {run_dir:?}\n{text}");
    std::fs::write(&file, text).expect("a run file");
    file.display().to_string()
}

#[test]
fn devices_are_listed_wherever_it_runs() {
    let told = retouch(&["devices"]);
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.status.success() && told.stderr.is_empty(), "{text}");
    assert!(
        text.contains("devices    cpu") && text.contains("cache "),
        "{text}"
    );
    let json = retouch(&["devices", "--json"]);
    let survey: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let cards = survey["cards"].as_array().expect("cards");
    let missing = survey["missing"].as_array().expect("sentences");
    // Whoever has no card is told why.
    assert!(!cards.is_empty() || !missing.is_empty(), "{survey}");
}

#[test]
fn a_launch_names_the_key_whose_device_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    for (setting, key) in [
        ("model = { device = \"cuda:255\" }", "model.device: "),
        (
            "reward = { device = [\"cuda:254\", \"cuda:255\"] }",
            "reward.device: ",
        ),
        (
            "learner = { device = \"cuda:255\", ranks = 1 }",
            "learner.device: ",
        ),
        (
            "learner = { device = \"cuda:0\", ranks = 2, collective = \"nccl\" }",
            "learner.ranks: 2 ranks that sum through NCCL need a card each",
        ),
        (
            "model = { device = [\"cuda:0\", \"cuda:0\"] }",
            "cuda:0 is named twice",
        ),
        ("model = { device = \"gpu\" }", "unknown device"),
    ] {
        let output = retouch(&["launch", &run_file(folder.path(), setting)]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{setting}: {text}");
        assert!(text.contains(key), "{setting}: {text}");
    }
    assert!(!folder.path().join("run").exists(), "nothing was begun");
}

#[test]
fn a_run_on_the_cpu_has_nothing_to_warm() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = retouch(&["devices", "warm", &run_file(folder.path(), "")]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("the CPU alone"), "{text}");
}
