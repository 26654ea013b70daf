//! Whole runs of `examples/smoke.toml` and `examples/smoke-qwen.toml` with real processes: the report, determinism, and
//! what kills change: nothing.

mod harness;

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
};

use harness::{
    adapter, assets, json, read, retouch,
    run::{Run, SMOKE_QWEN, spawn, undisturbed},
    signal, worker,
};
use retouch_dataset::Split;

#[test]
fn the_report_has_every_number() {
    let report = undisturbed();
    for measure in ["oracle", "judge"] {
        for part in ["before", "after", "gain"] {
            let estimate = &report["heldout"][measure][part];
            assert!(estimate["mean"].is_f64(), "{measure} {part}: {estimate}");
            let [low, high] = [0, 1].map(|i| estimate["ci95"][i].as_f64().expect("a bound"));
            assert!(low <= high, "{measure} {part}: {estimate}");
        }
    }
    assert_eq!(report["state"], "finished");
    assert_eq!(adapter(report).len(), 64);
    assert!(report["wall_s"].as_f64().expect("seconds") > 0.0);
    assert!(report["peak_rss_mib"].as_f64().expect("memory") > 0.0);
    assert!(report["stage_s"].as_object().expect("stages").len() >= 4);
}

#[test]
fn one_learner_gives_the_adapter_of_two() {
    let alone = Run::launch(&["learner.ranks=1"]).finish_well();
    assert_eq!(adapter(&alone), adapter(undisturbed()));
}

#[test]
fn status_shows_every_worker_while_the_run_goes_on() {
    let mut run = Run::launch(&[]);
    let status = run.wait_for(|status| status["committed"].as_u64() >= Some(1));
    let roles = |role: &str| {
        let workers = status["workers"].as_array().expect("workers");
        workers
            .iter()
            .filter(|worker| worker["role"] == role)
            .count()
    };
    assert_eq!(
        [
            roles("rollout-worker"),
            roles("reward-worker"),
            roles("learner")
        ],
        [2, 1, 2],
        "{status:#}"
    );
    assert_eq!(adapter(&run.finish_well()), adapter(undisturbed()));
}

#[test]
fn killing_any_worker_changes_nothing() {
    for name in [
        "rollout-worker-0",
        "reward-worker-0",
        "learner-0",
        "learner-1",
    ] {
        let mut run = Run::launch(&[]);
        run.wait_for(|status| status["committed"].as_u64() >= Some(1));
        signal("KILL", run.process(name));
        assert_eq!(
            adapter(&run.finish_well()),
            adapter(undisturbed()),
            "{name} was killed"
        );
    }
}

#[test]
fn an_interrupted_run_goes_on_when_launched_again() {
    let mut run = Run::launch(&[]);
    run.wait_for(|status| status["committed"].as_u64() >= Some(1));
    run.child.kill().expect("our own child");
    run.child.wait().expect("our own child");
    run.child = spawn(run.path(), &[]);
    let report = run.finish_well();
    assert_eq!(adapter(&report), adapter(undisturbed()));
    // One that is over has nothing left to do, however soon its coordinator ends.
    for _ in 0..3 {
        run.child = spawn(run.path(), &[]);
        assert_eq!(adapter(&run.finish_well()), adapter(&report));
    }
}

#[test]
fn a_run_on_another_base_model_differs_in_the_run_file_alone() {
    let report = Run::launch_example(SMOKE_QWEN, &[]).finish_well();
    assert_eq!(report["state"], "finished");
    let sampling = report["heldout"]["sampling"]
        .as_str()
        .expect("how edits were sampled");
    assert!(sampling.contains("true CFG 2"), "{sampling}");
    let alone = Run::launch_example(SMOKE_QWEN, &["learner.ranks=1"]).finish_well();
    assert_eq!(adapter(&alone), adapter(&report));
}

/// The dataset of the tests, every row with the source of the first besides.
fn dataset_of_two_sources(folder: &Path) -> PathBuf {
    let (from, data) = (assets().join("dataset"), folder.join("data"));
    std::fs::create_dir(&data).expect("a folder");
    symlink(from.join("images"), data.join("images")).expect("a link");
    for split in [Split::Train, Split::Test] {
        let rows = retouch_dataset::read(&from, split).expect("rows");
        let first = rows[0].images[0].clone();
        let several = rows.into_iter().map(|mut row| {
            row.images.push(first.clone());
            serde_json::to_string(&row).expect("a row") + "\n"
        });
        let file = data.join(split.file_name());
        std::fs::write(file, several.collect::<String>()).expect("a file");
    }
    data
}

#[test]
fn rows_may_have_as_many_sources_as_the_base_model_takes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = dataset_of_two_sources(folder.path());
    let set = format!("dataset.path={}", data.display());
    let mut run = Run::launch_example(SMOKE_QWEN, &[&set]);
    run.finish_well();
    let groups = json(
        retouch()
            .args(["groups", "--json"])
            .arg(run.path().join("run")),
    );
    let groups = groups.expect("groups");
    // Every node plans its memory by it.
    let settings = std::fs::read_to_string(run.path().join("run/config.toml")).expect("settings");
    assert!(settings.contains("sources_max = 2\n"), "{settings}");
    let sources = &groups[0]["image"];
    assert_eq!(sources.as_array().map(Vec::len), Some(2), "{sources}");
    let refused = |mut run: Run, problem: &str| {
        assert_eq!(run.finish().code(), Some(2));
        let logs = run.logs();
        assert!(logs.contains(problem), "{problem}: {logs}");
    };
    let launch = |more: &str| Run::launch_example(SMOKE_QWEN, &[&set, more]);
    refused(
        Run::launch(&[&set]),
        "image names 2 files, the base model takes 1",
    );
    refused(
        launch("dataset.sources_max=1"),
        "image names 2 files, dataset.sources_max is 1",
    );
    refused(
        launch("dataset.sources_max=4"),
        "dataset.sources_max: 4, the base model takes 3",
    );
}

#[test]
fn a_bare_node_joins_with_address_and_token_alone() {
    let mut run = Run::launch(&["cluster.rollout_workers=1"]);
    run.wait_for(|status| worker(status, "rollout-worker-0").is_some());
    let folder = run.path().to_owned();
    let mut node = retouch()
        .args(["join", "rollout-worker", "--name", "bare"])
        .args(["--coordinator", &read(&folder, "coordinator.addr")])
        .args([
            "--token",
            &read(&folder, "credentials/rollout-worker/token"),
        ])
        .arg("--scratch")
        .arg(folder.join("node"))
        .current_dir(&folder)
        .stdout(Stdio::null())
        .spawn()
        .expect("retouch starts");
    let joined = run.wait_for(|status| {
        worker(status, "bare").is_some_and(|worker| worker["done"].as_u64() > Some(0))
    });
    assert_eq!(
        worker(&joined, "bare").expect("it is there")["role"],
        "rollout-worker"
    );
    assert_eq!(adapter(&run.finish_well()), adapter(undisturbed()));
    let status = node.wait().expect("our own child");
    assert!(status.success(), "it ends with the run: {status}");
}
