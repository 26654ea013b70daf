//! Runs that start from an adapter, as `sft` leaves it.

mod harness;

use std::{fs, path::Path, sync::OnceLock};

use harness::{
    adapter, assets, json, retouch, root,
    run::{Run, launch_command, run_file, undisturbed},
};
use retouch_proto::ContentHash;
use retouch_tiny::dataset::{Dataset, Targets};
use serde_json::Value;

/// A LoRA of the smoke run's editor after a few large steps of supervised training: no base model any more.
fn fine_tuned() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dataset = Dataset {
            seed: 5,
            train: 8,
            test: 1,
            targets: Targets::Written,
        };
        dataset
            .write(&folder.path().join("dataset"))
            .expect("a dataset");
        let output = retouch()
            .arg("sft")
            .arg("--model")
            .arg(assets().join("editor"))
            .arg("--dataset")
            .arg(folder.path().join("dataset"))
            .arg("--output")
            .arg(folder.path().join("sft"))
            .args([
                "--steps=4",
                "--batch-size=4",
                "--validation-rows=1",
                "--warmup-steps=0",
            ])
            .args(["--height=64", "--width=64", "--max-sequence-length=17"])
            .args(["--learning-rate=1e-2", "--lora-rank=4", "--lora-alpha=8"])
            .output()
            .expect("retouch starts");
        assert!(output.status.success(), "{output:?}");
        folder
    });
    folder.path()
}

/// What a run file says to start from the adapter in this folder.
fn settings(init: &Path) -> [String; 4] {
    [
        format!("lora.init={}", init.display()),
        "lora.rank=4".to_owned(),
        "lora.alpha=8".to_owned(),
        "learner.reference=init".to_owned(),
    ]
}

fn with<'a>(settings: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    let settings = settings.iter().map(String::as_str);
    settings.chain(more.iter().copied()).collect()
}

/// The report of a run from the adapter that nothing happened to, and its first iteration's groups.
fn straight() -> &'static (Value, Value, ContentHash) {
    static RUN: OnceLock<(Value, Value, ContentHash)> = OnceLock::new();
    RUN.get_or_init(|| {
        let settings = settings(&fine_tuned().join("sft/adapter"));
        let mut run = Run::launch(&with(&settings, &[]));
        let report = run.finish_well();
        let initial = run.path().join("run/initial/version.safetensors");
        let version = ContentHash::of(&fs::read(initial).expect("the policy that it started from"));
        (report, groups(run.path()), version)
    })
}

/// The first iteration's groups of the run in this folder.
fn groups(folder: &Path) -> Value {
    let run = folder.join("run");
    let groups = json(
        retouch()
            .args(["groups", "--iteration=1", "--json"])
            .arg(run),
    );
    groups.expect("groups of a run that is over")
}

/// All images of some groups, as texts of their hashes.
fn images(groups: &Value) -> Vec<String> {
    let mut images = Vec::new();
    for group in groups.as_array().expect("groups") {
        for candidate in group["candidates"].as_array().expect("candidates") {
            images.push(candidate["image"].to_string());
        }
    }
    images
}

#[test]
fn the_first_iteration_samples_with_the_adapter() {
    let (report, groups, version) = straight();
    assert_eq!(report["state"], "finished");
    let all = groups.as_array().expect("groups");
    assert_eq!(all.len(), 4);
    for group in all {
        assert_eq!(group["policy"]["version"], version.to_string(), "{group:#}");
        assert_eq!(group["policy"]["iteration"], 0, "{group:#}");
    }
    // From the same noise the base model makes other images.
    let mut base = Run::launch(&["iterations=1", "evaluation.pairs=2"]);
    base.finish_well();
    let (ours, others) = (images(groups), images(&self::groups(base.path())));
    assert_eq!(ours.len(), others.len());
    assert!(ours.iter().all(|image| !others.contains(image)));
    assert_ne!(adapter(report), adapter(undisturbed()));
}

#[test]
fn one_learner_gives_the_adapter_of_two() {
    let settings = settings(&fine_tuned().join("sft/adapter"));
    let alone = Run::launch(&with(&settings, &["learner.ranks=1"])).finish_well();
    assert_eq!(adapter(&alone), adapter(&straight().0));
    // The same from diffusers' file.
    let file = fine_tuned().join("sft/adapter/pytorch_lora_weights.safetensors");
    let from_file = Run::launch(&with(&self::settings(&file), &[])).finish_well();
    assert_eq!(adapter(&from_file), adapter(&straight().0));
    // What the distance is measured from matters.
    let from_base = Run::launch(&with(&settings, &["learner.reference=base"])).finish_well();
    assert_ne!(adapter(&from_base), adapter(&straight().0));
}

#[test]
fn it_goes_on_without_the_adapter_and_forks() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let init = place.path().join("adapter");
    fs::create_dir(&init).expect("our own folder");
    for entry in fs::read_dir(fine_tuned().join("sft/adapter")).expect("an adapter") {
        let entry = entry.expect("a file");
        fs::copy(entry.path(), init.join(entry.file_name())).expect("a copy");
    }
    let settings = settings(&init);
    let mut run = Run::launch(&with(&settings, &[]));
    run.wait_for(|status| status["committed"].as_u64() >= Some(1));
    run.child.kill().expect("our own child");
    run.child.wait().expect("our own child");
    fs::remove_dir_all(&init).expect("our own folder");
    run.again(&with(&settings, &[]));
    assert_eq!(adapter(&run.finish_well()), adapter(&straight().0));

    let forked = run.path().join("forked");
    let more = ["iterations=4", "learner.learning_rate=1e-3"];
    let mut arguments = run_file(run.path(), &with(&settings, &more));
    arguments.extend(["--fork".to_owned(), forked.display().to_string()]);
    let status = launch_command(&arguments, run.path()).status();
    assert!(status.expect("retouch starts").success(), "{}", run.logs());
    let initial = |run: &Path| fs::read(run.join("initial/version.safetensors")).expect("a policy");
    assert_eq!(initial(&forked), initial(&run.path().join("run")));
}

#[test]
fn adapters_that_do_not_fit_are_refused_before_anything_starts() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let refused = |settings: &[&str]| {
        let output = retouch()
            .current_dir(root())
            .args(["config", "check"])
            .args(run_file(folder.path(), settings))
            .output()
            .expect("retouch starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        said
    };
    let said = refused(&["lora.init=nowhere"]);
    assert!(
        said.contains("lora.init: nowhere: there is no such file or folder"),
        "{said}"
    );
    let init = format!("lora.init={}", fine_tuned().join("sft/adapter").display());
    let said = refused(&[&init]);
    for part in [
        "lora.rank = 32 is not its rank 4",
        "--set lora.rank=4 --set lora.alpha=8",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let said = refused(&["learner.reference=init"]);
    assert!(
        said.contains("learner.reference: init is the adapter of lora.init"),
        "{said}"
    );
    assert!(!folder.path().join("run").exists());
}
