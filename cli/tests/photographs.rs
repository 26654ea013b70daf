//! Pictures as cameras, phones and programs save them (`photographs/`, made by `tools/photographs/make.py`), through
//! every command that takes one: seen as people see them, or refused by name.

mod harness;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use harness::{assets, retouch, run::Run};
use image::RgbImage;
use retouch_dataset::Split;
use retouch_models::images;
use serde::Deserialize;

/// What is known of a file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Expected {
    Refused {
        refused: String,
    },
    Seen {
        width: u32,
        height: u32,
        /// Mean colours: top left, top right, bottom left, bottom right.
        quarters: [[f64; 3]; 4],
    },
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/photographs")
}

fn photographs() -> BTreeMap<String, Expected> {
    let text = fs::read_to_string(folder().join("expected.json")).expect("what is expected");
    let expected: BTreeMap<String, Expected> = serde_json::from_str(&text).expect("JSON");
    assert_eq!(expected.len(), 26);
    expected
}

fn quarters(image: &RgbImage) -> [[f64; 3]; 4] {
    let (w, h) = (image.width() / 2, image.height() / 2);
    let mean = |(left, top): (u32, u32)| {
        let (width, height) = (
            if left == 0 { w } else { image.width() - w },
            if top == 0 { h } else { image.height() - h },
        );
        let part = image::imageops::crop_imm(image, left, top, width, height).to_image();
        let sum = |channel: usize| {
            part.pixels()
                .map(|pixel| f64::from(pixel[channel]))
                .sum::<f64>()
        };
        [0, 1, 2].map(|channel| sum(channel) / f64::from(width * height))
    };
    [(0, 0), (w, 0), (0, h), (w, h)].map(mean)
}

#[test]
fn every_file_is_seen_as_pillow_sees_it_or_refused() {
    for (name, expected) in photographs() {
        match (images::open(&folder().join(&name)), expected) {
            (Err(error), Expected::Refused { refused }) => {
                assert!(error.to_string().starts_with(&refused), "{name}: {error}");
            }
            (
                Ok(image),
                Expected::Seen {
                    width,
                    height,
                    quarters: expected,
                },
            ) => {
                assert_eq!(image.dimensions(), (width, height), "{name}");
                for (found, expected) in quarters(&image).iter().zip(expected) {
                    let near = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 3.0);
                    assert!(near, "{name}: {found:?}, Pillow has {expected:?}");
                }
            }
            (Ok(_), Expected::Refused { refused }) => panic!("{name} is read, not {refused:?}"),
            (Err(error), Expected::Seen { .. }) => panic!("{name}: {error}"),
        }
    }
}

/// A dataset of photographs, each its own target; some are held out.
fn dataset(root: &Path, names: &[&String]) -> PathBuf {
    let data = root.join("data");
    fs::create_dir_all(&data).expect("a folder");
    let images = data.join("images");
    if !images.exists() {
        std::os::unix::fs::symlink(folder(), &images).expect("a link");
    }
    let row = |name: &String| {
        format!(
            "{{\"prompt\":\"add a cloud\",\"image\":\"images/{name}\",\"target\":\"images/{name}\"}}\n"
        )
    };
    let rows: String = names.iter().map(|name| row(name)).collect();
    fs::write(data.join(Split::Train.file_name()), rows).expect("a file");
    let held_out: String = ["plain.png", "orientation-6.jpg", "alpha.webp", "cmyk.jpg"]
        .map(|name| row(&name.to_owned()))
        .concat();
    fs::write(data.join(Split::Test.file_name()), held_out).expect("a file");
    data
}

fn check(data: &Path) -> Output {
    let check = retouch().args(["dataset", "check"]).arg(data).output();
    check.expect("retouch starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn photographs_go_from_the_check_through_training_to_edits() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let photographs = photographs();
    let all: Vec<&String> = photographs.keys().collect();
    let checked = check(&dataset(root.path(), &all));
    assert_eq!(checked.status.code(), Some(2));
    let said = stderr(&checked);
    for (line, (name, expected)) in photographs.iter().enumerate() {
        let place = format!(
            "train_metadata.jsonl:{}: image \"images/{name}\": ",
            line + 1
        );
        match expected {
            Expected::Refused { refused } => {
                assert!(
                    said.contains(&format!("{place}{refused}")),
                    "{name}: {said}"
                );
            }
            Expected::Seen { .. } => assert!(!said.contains(&place), "{said}"),
        }
    }
    let is_seen = |name: &&&String| matches!(photographs[name.as_str()], Expected::Seen { .. });
    let good: Vec<&String> = all.iter().filter(is_seen).copied().collect();
    let data = dataset(root.path(), &good);
    assert!(check(&data).status.success());
    let adapter = fine_tune(root.path(), &data);
    let set = format!("dataset.path={}", data.display());
    let mut run = Run::launch(&[&set, "iterations=1", "evaluation.pairs=4"]);
    run.finish_well();
    an_adapter_brings_its_settings(root.path(), &run.path().join("run"));
    for (name, expected) in &photographs {
        edit(root.path(), name, expected, &adapter);
    }
}

/// `--run` edits as the run's evaluation did, with nothing said; so does its adapter by itself.
fn an_adapter_brings_its_settings(root: &Path, run: &Path) {
    let edited = |arguments: &[&str]| {
        let output = root.join("of-the-run.png");
        let mut command = retouch();
        command
            .arg("edit")
            .arg(folder().join("plain.png"))
            .arg("add a cloud")
            .args(arguments);
        let edited = command
            .arg("--output")
            .arg(&output)
            .output()
            .expect("retouch starts");
        assert!(
            edited.status.success(),
            "{arguments:?}: {}",
            stderr(&edited)
        );
        fs::read(&output).expect("an edited picture")
    };
    let adapter = run.join("adapters/final");
    let [run, adapter] = [run, &adapter].map(|path| path.to_str().expect("UTF-8").to_owned());
    let editor = assets().join("editor").display().to_string();
    let by_run = edited(&["--run", &run]);
    let model = ["--model", &editor, "--adapter", &adapter];
    assert_eq!(edited(&model), by_run);
    let sampling = fs::read_to_string(Path::new(&adapter).join("sampling.json")).expect("settings");
    let sampling: serde_json::Value = serde_json::from_str(&sampling).expect("JSON");
    let said: Vec<String> = [
        "num_inference_steps",
        "guidance_scale",
        "true_cfg_scale",
        "max_sequence_length",
    ]
    .map(|key| format!("--{}={}", key.replace('_', "-"), sampling[key]))
    .into();
    let said: Vec<&str> = said.iter().map(String::as_str).chain(model).collect();
    assert_eq!(edited(&said), by_run);
    assert_ne!(
        edited(&[&model[..], &["--num-inference-steps=1"]].concat()),
        by_run
    );
    let card = fs::read_to_string(Path::new(&adapter).join("README.md")).expect("a card");
    assert!(
        card.contains("## Results") && card.contains("held-out pairs"),
        "{card}"
    );
}

/// Two steps of supervision; gives the adapter.
fn fine_tune(root: &Path, data: &Path) -> PathBuf {
    let output = root.join("sft");
    let options = [
        "--train=lora",
        "--steps=2",
        "--batch-size=2",
        "--validation-rows=2",
        "--height=64",
        "--width=64",
        "--max-sequence-length=17",
    ];
    let mut command = retouch();
    command
        .arg("sft")
        .args(options)
        .arg("--model")
        .arg(assets().join("editor"));
    command
        .arg("--dataset")
        .arg(data)
        .arg("--output")
        .arg(&output);
    let trained = command.output().expect("retouch starts");
    assert!(trained.status.success(), "{}", stderr(&trained));
    output.join("adapter")
}

/// An edit of the upright picture in its own size, rounded down to the small editor's tokens; or the reason why not.
fn edit(root: &Path, name: &str, expected: &Expected, adapter: &Path) {
    let output = root.join("edited.png");
    let _ = fs::remove_file(&output);
    let mut command = retouch();
    command
        .arg("edit")
        .arg(folder().join(name))
        .arg("add a cloud")
        .arg("--model")
        .arg(assets().join("editor"));
    command
        .args([
            "--num-inference-steps=1",
            "--max-sequence-length=17",
            "--adapter",
        ])
        .arg(adapter);
    let edited = command
        .arg("--output")
        .arg(&output)
        .output()
        .expect("retouch starts");
    match expected {
        Expected::Refused { refused } => {
            assert_eq!(edited.status.code(), Some(2), "{name}");
            let said = stderr(&edited);
            assert!(said.contains(name) && said.contains(refused), "{said}");
        }
        Expected::Seen { width, height, .. } => {
            assert!(edited.status.success(), "{name}: {}", stderr(&edited));
            let size = image::image_dimensions(&output).expect("an edited picture");
            assert_eq!(size, (width / 8 * 8, height / 8 * 8), "{name}");
        }
    }
}
