//! `retouch launch --dry-run` on the small model.

use std::process::{Command, Output};

use serde_json::Value;

/// A dry run of few samples: 4 at 5 of 6 timesteps on the first of two ranks.
fn dry_run(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("run.toml");
    std::fs::write(&file, "preset = \"tiny\"").expect("a run file");
    Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(["launch", "--dry-run"])
        .arg(&file)
        .args(["--set", "rollout.groups_per_iteration=2"])
        .args(["--set", "rollout.group_size=4"])
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("retouch starts")
}

#[test]
fn a_dry_run_tells_shapes_memory_and_time() {
    let output = dry_run(&["--json"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["shapes"][0]["name"], "x0 of a group");
    assert_eq!(report["shapes"][0]["shape"], serde_json::json!([4, 64, 32]));
    let evaluations = serde_json::json!({"theta": 20, "old": 20, "reference": 20});
    assert_eq!(report["evaluations"], evaluations);
    let bytes = |value: &Value| value.as_u64().expect("a number of bytes");
    let lines = report["plan"]["lines"].as_array().expect("lines");
    let sum: u64 = lines.iter().map(|line| bytes(&line["bytes"])).sum();
    assert_eq!(bytes(&report["plan"]["bytes"]), sum);
    assert!(
        bytes(&report["memory"]["peak_bytes"]) > 11 << 20,
        "less than the weights"
    );
    assert_eq!(report["memory"]["of"], "host");
    let stages = report["stages_s"].as_array().expect("stages");
    let backward = stages.iter().find(|stage| stage[0] == "backward");
    assert!(backward.expect("a stage")[1].as_f64().expect("seconds") > 0.0);
}

#[test]
fn people_are_told_the_same_and_what_is_missing() {
    let output = dry_run(&["--set", "learner.activation_checkpointing=block"]);
    let told = String::from_utf8_lossy(&output.stdout);
    for line in [
        "x0 of a group",
        "activation checkpointing: block",
        "inputs of the blocks",
        "backward",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    let output = dry_run(&["--set", "model.path=nowhere"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("model.path: nowhere/model_index.json is missing"),
        "{said}"
    );
}

#[test]
fn targets_that_are_no_layers_are_refused_before_anything_starts() {
    let set = ["--set", r#"lora.target_modules=["to_q", "attn.to_outt.0"]"#];
    let folder = tempfile::tempdir().expect("a folder");
    let run_dir = format!("run_dir={}", folder.path().join("run").display());
    let launch = |command: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_retouch"))
            .args(command)
            .arg("examples/smoke.toml")
            .args(set)
            .args(["--set", &run_dir])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .output()
            .expect("retouch starts")
    };
    for output in [
        dry_run(&set),
        launch(&["launch"]),
        launch(&["config", "check"]),
    ] {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        let expected =
            "\"attn.to_outt.0\" matches no layer of the model; did you mean \"attn.to_out.0\"?";
        assert!(said.contains(expected), "{said}");
    }
    assert!(!folder.path().join("run").exists());
}
