//! `dataset check`, `config check` and `sft` on the same folders: they find the same problems, or none.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

use retouch_dataset::Split;
use retouch_tiny::dataset::{Dataset, Targets};

const SPLITS: [Split; 2] = [Split::Train, Split::Test];
/// Every folder has this image.
const IMAGE: &str = "images/train_00000.png";

/// A sound dataset, which tests change.
fn dataset() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dataset = Dataset {
        seed: 1,
        train: 2,
        test: 2,
        targets: Targets::Written,
    };
    dataset.write(folder.path()).expect("a dataset");
    folder
}

/// The three commands that judge a dataset before anything is done with it.
fn judge(folder: &Path) -> [(&'static str, Output); 3] {
    let retouch = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_retouch"))
            .args(arguments)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .output()
            .expect("retouch starts")
    };
    let path = folder.to_str().expect("a path in UTF-8");
    let check = retouch(&["dataset", "check", path]);
    let set = format!("dataset.path={path}");
    let pairs = ["--set", "evaluation.pairs=1", "--set", &set];
    let config = retouch(&[&["config", "check", "examples/smoke.toml"], &pairs[..]].concat());
    let output = tempfile::tempdir().expect("a temporary folder");
    let output = output.path().to_str().expect("a path in UTF-8");
    let sft = retouch(&[
        "sft",
        "--model=assets/tiny/editor",
        "--dataset",
        path,
        "--output",
        output,
        "--steps=1",
        "--batch-size=1",
        "--validation-rows=1",
        "--height=64",
        "--width=64",
        "--max-sequence-length=17",
    ]);
    [
        ("dataset check", check),
        ("config check", config),
        ("sft", sft),
    ]
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Both splits' problems in the words of all three, without the folder.
fn problems(folder: &Path) -> Vec<String> {
    let outputs = judge(folder);
    let codes = outputs.each_ref().map(|(_, output)| output.status.code());
    assert_eq!(codes, [Some(2); 3], "{outputs:?}");
    let listed = outputs.map(|(command, output)| {
        let text = stderr(&output);
        let (_, problems) = text
            .split_once(" problems:\n")
            .unwrap_or_else(|| panic!("{command}: {text}"));
        problems.replace(&format!("{}/", folder.display()), "")
    });
    assert_eq!(listed[0], listed[1]);
    assert_eq!(listed[0], listed[2]);
    listed[0]
        .lines()
        .map(|line| line.trim_start().to_owned())
        .collect()
}

fn accepted(folder: &Path) {
    for (command, output) in judge(folder) {
        assert!(output.status.success(), "{command}: {}", stderr(&output));
    }
}

#[test]
fn all_commands_list_the_same_bad_lines() {
    let folder = dataset();
    let folder = folder.path();
    symlink("gone.png", folder.join("images/dangling.png")).expect("a link");
    symlink("loop.png", folder.join("images/loop.png")).expect("a link");
    let row = |prompt: &str, image: &str| {
        format!(r#"{{"prompt":"{prompt}","image":"{image}","target":"{IMAGE}"}}"#)
    };
    let image = |path: &str| row("p", path);
    let long = row(&"x".repeat(70_000), IMAGE);
    let lines = [
        (
            image("images/gone.png"),
            "image \"images/gone.png\": No such file",
        ),
        (image("images"), "image \"images\": a directory"),
        (
            image("images/dangling.png"),
            "image \"images/dangling.png\": a link to gone.png: No such file",
        ),
        (
            image("images/loop.png"),
            "image \"images/loop.png\": a link to loop.png: Too many levels",
        ),
        (
            image("../x.png"),
            "image \"../x.png\": not a path inside the dataset",
        ),
        (row(" ", IMAGE), "prompt is empty"),
        (long, "prompt has 70000 bytes, at most 16384 are allowed"),
        (format!(r#"["p","{IMAGE}","{IMAGE}"]"#), "not an object"),
        (
            format!(r#"{{"image":"{IMAGE}","image":"{IMAGE}"}}"#),
            "duplicate field `image`",
        ),
    ];
    let mut text: Vec<u8> = lines
        .iter()
        .flat_map(|(line, _)| format!("{line}\r\n\n").into_bytes())
        .collect();
    text.extend(b"{\"prompt\":\"\xff\"}\n");
    for split in SPLITS {
        fs::write(folder.join(split.file_name()), &text).expect("a file");
    }
    let problems = problems(folder);
    let mut expected: Vec<(usize, &str)> = (0..)
        .map(|index| 2 * index + 1)
        .zip(lines.iter().map(|(_, problem)| *problem))
        .collect();
    expected.push((19, "not UTF-8 at column 12"));
    assert_eq!(problems.len(), 2 * expected.len(), "{problems:#?}");
    let expected = SPLITS.iter().flat_map(|split| {
        expected
            .iter()
            .map(|(line, problem)| format!("{}:{line}: {problem}", split.file_name()))
    });
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.starts_with(&expected), "{problem}, not {expected}");
    }
}

#[test]
fn all_commands_look_into_the_images() {
    let folder = dataset();
    let folder = folder.path();
    let images = folder.join("images");
    let jpeg = images.join("cut.jpg");
    image::RgbImage::new(64, 64).save(&jpeg).expect("a JPEG");
    let whole = fs::read(&jpeg).expect("a JPEG");
    fs::write(&jpeg, &whole[..whole.len() - 40]).expect("a file");
    let thin = image::RgbImage::new(900, 17);
    thin.save(images.join("thin.png")).expect("a PNG");
    fs::write(images.join("page.png"), "<!DOCTYPE html>").expect("a file");
    let expected = [
        ("cut.jpg", "it is cut off"),
        ("thin.png", "it has 900 x 17 pixels"),
        ("page.png", "it is a web page"),
    ];
    for split in SPLITS {
        let row = |(image, _): &(&str, &str)| {
            format!("{{\"prompt\":\"p\",\"image\":\"images/{image}\",\"target\":\"{IMAGE}\"}}\n")
        };
        let rows: String = expected.iter().map(row).collect();
        fs::write(folder.join(split.file_name()), rows).expect("a file");
    }
    let mut json = Command::new(env!("CARGO_BIN_EXE_retouch"));
    let json = json
        .args(["dataset", "check", "--json"])
        .arg(folder)
        .output();
    let told: serde_json::Value =
        serde_json::from_slice(&json.expect("retouch starts").stdout).expect("JSON");
    assert_eq!(
        (&told["count"], told.get("train")),
        (&6.into(), None),
        "{told}"
    );
    let problems = problems(folder);
    assert_eq!(problems.len(), 6, "{problems:#?}");
    for (problem, (image, what)) in problems.iter().zip(expected.iter().cycle()) {
        let expected = format!("image \"images/{image}\": {what}");
        assert!(problem.contains(&expected), "{problem}, not {expected}");
    }
}

#[test]
fn all_commands_refuse_the_same_files() {
    let folder = dataset();
    let folder = folder.path();
    fs::write(folder.join(Split::Train.file_name()), "\u{feff}\r\n\n").expect("a file");
    fs::remove_file(folder.join(Split::Test.file_name())).expect("a file");
    let problems = problems(folder);
    assert!(
        problems[0].starts_with("train_metadata.jsonl: no rows"),
        "{problems:?}"
    );
    assert!(
        problems[1].starts_with("test_metadata.jsonl: No such file"),
        "{problems:?}"
    );
    assert_eq!(problems.len(), 2);
}

#[test]
fn files_of_other_editors_are_read() {
    let folder = dataset();
    for split in SPLITS {
        let file = folder.path().join(split.file_name());
        let text = fs::read_to_string(&file).expect("a file");
        let prompts = text.replace("\"prompt\":\"", "\"prompt\":\"please\u{2028}");
        let lines = prompts
            .replace('\n', " \r\n \r\n")
            .replace("\"requirement\":", "\"note\":");
        fs::write(&file, format!("\u{feff}{lines}")).expect("a file");
    }
    accepted(folder.path());
}

/// `images/` on another disk, and a Hugging Face snapshot: every file is a link to `../../blobs`.
#[test]
fn links_are_followed() {
    let (folder, root) = (dataset(), tempfile::tempdir().expect("a temporary folder"));
    let linked = dataset();
    fs::remove_dir_all(linked.path().join("images")).expect("a folder");
    symlink(folder.path().join("images"), linked.path().join("images")).expect("a link");
    accepted(linked.path());

    let snapshot = root.path().join("snapshots/ab12");
    fs::create_dir(root.path().join("blobs")).expect("a folder");
    for part in ["", "images", "targets"] {
        fs::create_dir_all(snapshot.join(part)).expect("a folder");
        for entry in fs::read_dir(folder.path().join(part)).expect("a folder") {
            let file = entry.expect("an entry").path();
            if file.is_file() {
                let name = file.file_name().expect("a name");
                let blob = format!("{part}-{}", name.display());
                fs::copy(&file, root.path().join("blobs").join(&blob)).expect("a copy");
                let up = if part.is_empty() {
                    "../../blobs"
                } else {
                    "../../../blobs"
                };
                symlink(Path::new(up).join(blob), snapshot.join(part).join(name)).expect("a link");
            }
        }
    }
    accepted(&snapshot);
}
