//! Runs that go on from checkpoints: their end is that of one that never stopped, or they say which
//! checkpoint they can't go on from.

mod harness;

use std::fs::{self, OpenOptions};
use std::path::Path;

use harness::cluster::Cluster;

const ITERATIONS: u32 = 5;
const WORKERS: [(&str, usize); 3] = [("rollout-worker", 1), ("reward-worker", 1), ("learner", 2)];

fn settings(archive: &Path) -> String {
    format!(
        r#"
iterations = {ITERATIONS}
learner = {{ ranks = 2, micro_batch_size = 4, checkpoint_every = 1 }}
rollout = {{ groups_per_iteration = 2, group_size = 4, num_inference_steps = 2 }}
cluster = {{ threads_per_worker = 1, heartbeat_ms = 200 }}
checkpoint = {{ url = "file://{}", keep_last = 2 }}
"#,
        archive.display()
    )
}

/// Everything that a machine had is gone, but for models, dataset and run file.
fn lose_the_machine(run: &mut Cluster) {
    run.kill_everything();
    for entry in fs::read_dir(run.path()).expect("our folder").flatten() {
        let name = entry.file_name().into_string().expect("our names");
        if name == "run" || name.starts_with("data-") {
            fs::remove_dir_all(entry.path()).expect("our own");
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    let names = entries.map(|entry| entry.file_name().into_string().expect("our names"));
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

/// The checkpoints that were put away whole. (A process that is killed while it copies to a folder
/// leaves a temporary file, which no store lists.)
fn whole(archive: &Path) -> Vec<u32> {
    let whole = |name: &String| archive.join(name).join("manifest.json").is_file();
    let names = names(archive).into_iter().filter(whole);
    let mut numbers: Vec<u32> = names
        .filter_map(|name| name.strip_prefix("checkpoint-")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn a_run_that_lost_its_folder_goes_on_from_any_iteration() {
    let kept = tempfile::tempdir().expect("a temporary folder");
    let mut straight = Cluster::start(&settings(&kept.path().join("straight")));
    straight.start_workers(&WORKERS);
    assert!(straight.finish(), "{}", straight.logs());
    let expected = straight.result();
    assert_eq!(expected.1.len() as u32, ITERATIONS);

    for stop_after in [1, 2, 3] {
        let archive = kept.path().join(format!("after-{stop_after}"));
        let mut run = Cluster::start(&settings(&archive));
        run.start_workers(&WORKERS);
        run.wait_for("the checkpoint is put away", || {
            let newest = whole(&archive).pop();
            newest
                .is_some_and(|newest| newest >= stop_after)
                .then_some(())
        });
        lose_the_machine(&mut run);
        run.start_coordinator();
        run.start_workers(&WORKERS);
        assert!(run.finish(), "{}", run.logs());
        let log = run.log("coordinator");
        assert!(log.contains("a checkpoint was brought back"), "{log}");
        assert_eq!(run.result(), expected, "stopped after {stop_after}");
        assert_eq!(whole(&archive).len(), 2);
        assert_eq!(whole(&archive).pop(), Some(ITERATIONS));
        assert_eq!(names(&run.path().join("run/checkpoints")), ["4", "5"]);
    }
}

#[test]
fn another_runs_checkpoint_is_refused_by_name() {
    let kept = tempfile::tempdir().expect("a temporary folder");
    let settings = settings(&kept.path().join("archive"));
    let mut run = Cluster::start(&settings.replace("iterations = 5", "iterations = 1"));
    run.start_workers(&WORKERS);
    assert!(run.finish(), "{}", run.logs());
    lose_the_machine(&mut run);
    run.set(&settings.replace("group_size = 4", "group_size = 3"));
    run.spawn_coordinator();
    assert!(!run.finish());
    let log = run.log("coordinator");
    for part in ["checkpoint 1 at file://", "rollout.group_size: 4 -> 3"] {
        assert!(log.contains(part), "{part}\n{log}");
    }
}

#[test]
fn a_run_goes_on_from_the_checkpoint_before_torn_ones_and_says_so() {
    let kept = tempfile::tempdir().expect("a temporary folder");
    let settings = |name: &str| settings(&kept.path().join(name));
    let mut straight = Cluster::start(&settings("straight"));
    straight.start_workers(&WORKERS);
    assert!(straight.finish(), "{}", straight.logs());

    let mut run = Cluster::start(&settings("torn"));
    run.start_workers(&WORKERS);
    let checkpoints = run.path().join("run/checkpoints");
    run.wait_for("a checkpoint with one before it", || {
        checkpoints.join("2/run.db").is_file().then_some(())
    });
    run.kill_everything();
    let mut torn = names(&checkpoints);
    let whole = torn.remove(0);
    torn.iter().for_each(|torn| tear(&checkpoints.join(torn)));
    run.start_coordinator();
    run.start_workers(&WORKERS);
    assert!(run.finish(), "{}", run.logs());
    let log = run.log("coordinator");
    let went_back = format!("the last whole checkpoint is {whole}");
    for part in ["/state.safetensors ", &went_back] {
        assert!(log.contains(part), "{part}\n{log}");
    }
    assert_eq!(run.result(), straight.result());
}

#[test]
fn a_run_without_a_whole_checkpoint_is_refused_and_not_begun_again() {
    let kept = tempfile::tempdir().expect("a temporary folder");
    let mut run = Cluster::start(&settings(&kept.path().join("archive")));
    run.start_workers(&WORKERS);
    let checkpoints = run.path().join("run/checkpoints");
    run.wait_for("a checkpoint is complete", || {
        checkpoints.join("1/run.db").is_file().then_some(())
    });
    run.kill_everything();
    for iteration in names(&checkpoints) {
        tear(&checkpoints.join(iteration));
    }
    run.spawn_coordinator();
    assert!(!run.finish());
    let log = run.log("coordinator");
    for part in ["no checkpoint is whole", "/state.safetensors "] {
        assert!(log.contains(part), "{part}\n{log}");
    }
}

/// Only the first part of its state was written.
fn tear(checkpoint: &Path) {
    let state = checkpoint.join("state.safetensors");
    let file = OpenOptions::new().write(true).open(state);
    file.and_then(|file| file.set_len(1000))
        .expect("a longer state");
}
