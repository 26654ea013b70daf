//! What a command says when nobody listens.

use std::process::{Command, Output};

fn retouch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("retouch starts")
}

#[test]
fn wrong_settings_are_usage_errors_for_people_and_programs() {
    let sets = ["--set", "rollout.solvr=euler", "--set", "seed=-1"];
    let check = ["config", "check", "examples/smoke.toml", "--json"];
    let output = retouch(&[&check[..], &sets].concat());
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("rollout.solvr: unknown field, did you mean solver?"),
        "{said}"
    );
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let keys: Vec<_> = told["problems"]
        .as_array()
        .expect("problems")
        .iter()
        .map(|p| &p["key"])
        .collect();
    assert_eq!(keys, ["rollout.solvr", "seed"]);
}

#[test]
fn the_defaults_and_their_schema_are_shown_without_a_run_file() {
    let shown = String::from_utf8(retouch(&["config", "show"]).stdout).expect("text");
    assert!(shown.contains("# The sampler.\n"), "{shown}");
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_slice(&retouch(arguments).stdout).expect("JSON")
    };
    assert_eq!(
        json(&["config", "show", "--json", "--set", "seed=7"])["seed"],
        7
    );
    assert_eq!(json(&["config", "schema"])["additionalProperties"], false);
}

#[test]
fn a_folder_without_a_run_has_no_status() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().to_str().expect("UTF-8");
    let output = retouch(&["status", path]);
    assert_eq!(output.status.code(), Some(3), "it may be about to begin");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no coordinator runs in"), "{said}");
}

#[test]
fn a_reader_that_leaves_early_ends_a_command_well() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(["config", "show", "examples/smoke.toml"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stdout(writer)
        .output()
        .expect("retouch starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert_eq!(said, "");
}
