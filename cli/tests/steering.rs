//! People steer a run, from its own machine and from elsewhere; what it computes stays the same.

mod harness;

use std::{path::Path, process::Command};

use harness::{
    adapter, json, read, retouch, retouch_path,
    run::{ERR, OUT, Run},
    status, worker,
};
use serde_json::Value;

/// Runs a command on the run's coordinator as from another machine: by address and token.
fn remote(folder: &Path, command: &[&str]) -> std::process::Output {
    retouch()
        .args(command)
        .args(["--coordinator", &read(folder, "coordinator.addr")])
        .env("RETOUCH_TOKEN", read(folder, "credentials/control/token"))
        .output()
        .expect("retouch starts")
}

fn remote_json(folder: &Path, command: &[&str]) -> Value {
    let output = remote(folder, &[command, &["--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn local_json(folder: &Path, command: &str) -> Value {
    let run = folder.join("run");
    json(retouch().args([command, "--json"]).arg(run)).expect("JSON")
}

/// Without a terminal nothing has colours, and progress is lines with the time.
fn check_plain(folder: &Path) {
    let logs = std::fs::read_dir(folder.join("run/logs")).expect("logs");
    let mut files: Vec<_> = logs.map(|log| log.expect("a log").path()).collect();
    files.extend([folder.join(OUT), folder.join(ERR)]);
    for file in &files {
        let text = std::fs::read_to_string(file).expect("text");
        assert!(!text.contains('\x1b'), "{}:\n{text}", file.display());
    }
    let told = std::fs::read_to_string(folder.join(OUT)).expect("text");
    let times = |what: &str| {
        told.lines()
            .filter(|line| line.get(8..).is_some_and(|rest| rest.starts_with(what)))
            .count()
    };
    assert_eq!(times("  iteration "), 6, "{told}");
    assert!(times("  evaluating: ") >= 1, "{told}");
}

/// What bash offers in a folder for the last of these words.
fn completed(folder: &Path, words: &[&str]) -> Vec<String> {
    let program = retouch_path();
    let script = r#"
        source <(retouch completions bash)
        COMP_WORDS=(retouch "$@") COMP_CWORD=$#
        _clap_complete_retouch retouch "${@: -1}" ""
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let output = Command::new("bash")
        .args(["--norc", "-c", script, "bash"])
        .args(words)
        .env(
            "PATH",
            format!(
                "{}:/usr/bin:/bin",
                program.parent().expect("a folder").display()
            ),
        )
        .current_dir(folder)
        .output()
        .expect("bash starts");
    let offered = String::from_utf8(output.stdout).expect("UTF-8");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.is_empty(), "{said}");
    offered.lines().map(str::to_owned).collect()
}

/// Runs, their workers and the keys of run files, beside commands, options and folders.
#[test]
fn shells_complete_what_only_the_program_knows() {
    let mut run = Run::launch(&["iterations=1000", "learner.checkpoint_every=1000"]);
    let folder = &run.path().to_owned();
    run.wait_for(|status| status["committed"].as_u64() >= Some(1));
    let completed = |words: &[&str]| completed(folder, words);
    assert_eq!(completed(&["stat"]), ["status"]);
    assert_eq!(
        completed(&["restart", "run/", "learner"]),
        ["learner-0", "learner-1"]
    );
    assert_eq!(
        completed(&["drain", "--wait", "run", "reward"]),
        ["reward-worker-0"]
    );
    let address = read(folder, "coordinator.addr");
    let elsewhere = [
        "restart",
        "--coordinator",
        &address,
        "--token",
        &read(folder, "credentials/control/token"),
        "rollout",
    ];
    assert_eq!(
        completed(&elsewhere),
        ["rollout-worker-0", "rollout-worker-1"]
    );
    for command in ["status", "drain", "report"] {
        assert_eq!(completed(&[command, "r"])[0], "run/", "{command}");
    }
    std::os::unix::fs::symlink(".", folder.join("runs")).expect("a link");
    assert_eq!(completed(&["status", ""])[0], "runs/run/");
    let set = completed(&["launch", "run.toml", "--set", "learner.learning"]);
    assert_eq!(set, ["learner.learning_rate="]);
    remote_json(folder, &["stop"]);
    assert!(run.finish().success(), "{}", run.logs());
}

#[test]
fn a_run_that_is_steered_from_elsewhere_ends_with_the_same_adapter() {
    let mut run = Run::launch(&["iterations=6", "learner.checkpoint_every=10"]);
    let folder = run.path().to_owned();
    run.wait_for(|status| status["committed"].as_u64() >= Some(1));

    let first_life =
        worker(&status(&folder).expect("a status"), "learner-1").expect("a learner")["generation"]
            .clone();
    let restarted = remote_json(&folder, &["restart", "learner-1"]);
    assert_eq!(restarted["state"], "running");
    run.wait_for(|status| {
        worker(status, "learner-1")
            .is_some_and(|worker| worker["generation"] != first_life && worker["state"] == "ready")
    });
    let drained = remote(&folder, &["drain", "rollout-worker-1", "--wait"]);
    assert!(drained.status.success(), "{drained:?}");
    run.wait_for(|status| {
        worker(status, "rollout-worker-1").is_some_and(|worker| worker["state"] == "left")
    });
    let checkpoint = remote_json(&folder, &["checkpoint"]);
    assert!(
        checkpoint["message"]
            .as_str()
            .expect("words")
            .ends_with("is durable")
    );

    let refused = remote(&folder, &["drain", "nobody"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(4), "{said}");
    assert!(said.contains("no worker nobody is in the run"), "{said}");

    let group = &remote_json(&folder, &["groups", "--id", "1/0"])[0];
    assert_eq!(group["group"]["index"], 0);
    assert!(
        group["sampled_by"]
            .as_str()
            .expect("a worker")
            .starts_with("rollout-worker-")
    );
    assert_eq!(
        group["candidates"][0]["terms"][0]["probabilities"]
            .as_array()
            .expect("six")
            .len(),
        6
    );

    let steered = adapter(&run.finish_well());
    let left_alone = Run::launch(&["iterations=6", "learner.checkpoint_every=10"]).finish_well();
    assert_eq!(steered, adapter(&left_alone));

    let versions = local_json(&folder, "versions");
    assert_eq!(versions.as_array().expect("versions").len(), 6);
    assert_eq!(versions[5]["ema_adapter"], steered);
    let events = retouch()
        .args(["events", "--follow", "--kind", "worker-left", "--json"])
        .arg(folder.join("run"))
        .output()
        .expect("retouch starts");
    let left: Vec<Value> = String::from_utf8_lossy(&events.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("an event"))
        .collect();
    assert_eq!(left.len(), 2, "one restarted, one drained: {left:?}");
    let kept = local_json(&folder, "groups");
    assert!(
        kept.as_array()
            .expect("groups")
            .iter()
            .any(|group| group["state"] == "kept")
    );
    let over = local_json(&folder, "status");
    assert_eq!(
        (&over["state"], &over["coordinator"], &over["committed"]),
        (&"finished".into(), &"ended".into(), &6.into())
    );
    assert_eq!(over["history"].as_array().expect("iterations").len(), 6);
    check_plain(&folder);
    let away = retouch()
        .arg("pause")
        .arg(folder.join("run"))
        .output()
        .expect("retouch starts");
    assert_eq!(away.status.code(), Some(3), "nobody is there any more");
}
