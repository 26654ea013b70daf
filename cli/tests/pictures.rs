//! The pictures that a run leaves on its way, and those of its groups.

mod harness;

use std::{
    fs,
    path::{Path, PathBuf},
};

use harness::{
    adapter, json, retouch,
    run::{Run, undisturbed},
};
use retouch_proto::{
    Iteration, RunFolder,
    saved_group::{GroupPictures, SavedGroup},
};
use serde_json::Value;

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// `groups --id ID --save FOLDER`: whether it worked, and what it complained of.
fn save(run: &Path, id: &str, folder: &Path) -> (bool, String) {
    let mut command = retouch();
    command.arg("groups").arg(run).args(["--id", id, "--save"]);
    let output = command.arg(folder).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), said)
}

fn read(folder: &Path) -> (SavedGroup, GroupPictures<Vec<u8>>) {
    SavedGroup::read(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

fn assert_is_picture(png: &[u8]) {
    let picture = image::load_from_memory(png).expect("a picture").into_rgb8();
    assert_eq!(picture.dimensions(), (64, 64));
}

#[test]
fn a_run_leaves_pictures_on_its_way_that_change_nothing() {
    let mut run = Run::launch(&["samples.every=1", "samples.pairs=2"]);
    let report = run.finish_well();
    assert_eq!(adapter(&report), adapter(undisturbed()));
    let path = run.path().join("run");
    let folder = RunFolder::new(&path);

    let kept = folder.saved_groups();
    assert_eq!(kept.iterations(), [1, 2, 3].map(Iteration));
    let (group, pictures) = read(&kept.of(Iteration(3)));
    assert_eq!((group.candidates.len(), pictures.candidates.len()), (4, 4));
    assert_is_picture(&pictures.sources[0]);
    for (candidate, png) in group.candidates.iter().zip(&pictures.candidates) {
        assert_is_picture(png);
        let sum: f64 = candidate.terms[0].probabilities.iter().sum();
        assert!((sum - 1.0).abs() < 1e-3, "{candidate:?}");
    }

    let samples = names(&folder.samples());
    for iteration in 1..=3 {
        let grid = format!("heldout_00000{iteration}.png");
        assert!(samples.contains(&grid), "{samples:?}");
        let edits = format!("heldout/00000{iteration}");
        assert_eq!(names(&folder.samples().join(edits)), ["000.png", "001.png"]);
    }
    let edits = |iteration: u32| {
        fs::read(
            folder
                .samples()
                .join(format!("heldout/{iteration:06}/000.png")),
        )
    };
    assert_ne!(
        edits(0).expect("the base's"),
        edits(3).expect("the last adapter's")
    );
    assert!(!names(&folder.events().join("samples")).is_empty());
    let page = fs::read_to_string(folder.report_html()).expect("a page");
    assert!(page.contains("samples/heldout/000003/001.png"));

    let again = retouch()
        .arg("samples")
        .arg(&path)
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(
        again.status.success() && said.contains("due has its pictures"),
        "{said}"
    );

    let saved = run.path().join("saved");
    let (ok, said) = save(&path, &group.group.to_string(), &saved);
    assert!(ok, "{said}");
    let (with_advantages, same) = read(&saved);
    assert_eq!(same, pictures);
    assert!(
        with_advantages
            .candidates
            .iter()
            .all(|candidate| candidate.advantage.is_some())
    );
    assert!(saved.join("sheet.png").is_file());

    let other = (group.group.index + 1) % 4;
    let nowhere = run.path().join("nowhere");
    let (ok, said) = save(&path, &format!("3/{other}"), &nowhere);
    assert!(
        !ok && said.contains(&format!("there is --id {}", group.group)),
        "{said}"
    );
    assert!(!nowhere.exists());
    let (ok, said) = save(&path, "3/99", &nowhere);
    assert!(!ok && said.contains("no group 3/99"), "{said}");
    let (ok, said) = save(&path, "3/0", &saved);
    assert!(!ok && said.contains("not empty"), "{said}");
}

fn tell(run: &Path, command: &str) {
    let told = retouch().arg(command).arg(run).output().expect("it starts");
    assert!(told.status.success(), "{command}: {told:?}");
}

/// A group with scores of an iteration that is not committed, in a run that stands still.
fn open_group(run: &mut Run, path: &Path) -> String {
    loop {
        tell(path, "pause");
        run.wait_for(|status| {
            let workers = status["workers"].as_array().expect("workers");
            workers.iter().all(|worker| worker["busy"] == 0)
        });
        let query = ["groups", "--state", "scored", "--json"];
        let found: Value = json(retouch().args(query).arg(path)).expect("groups");
        if let Some(group) = found.as_array().and_then(|groups| groups.first()) {
            let id = &group["group"];
            return format!("{}/{}", id["iteration"], id["index"]);
        }
        tell(path, "resume");
    }
}

#[test]
fn pictures_of_an_open_group_come_from_the_workers_that_hold_them() {
    let mut run = Run::launch(&["samples.keep_groups=0", "iterations=1000"]);
    let path: PathBuf = run.path().join("run");
    run.wait_for(|status| status["committed"].as_u64() >= Some(1));
    let id = open_group(&mut run, &path);
    let saved = run.path().join("saved");
    let (ok, said) = save(&path, &id, &saved);
    assert!(ok, "{said}");
    let (group, pictures) = read(&saved);
    assert_eq!(group.group.to_string(), id);
    assert_eq!(pictures.candidates.len(), 4);
    pictures
        .candidates
        .iter()
        .for_each(|png| assert_is_picture(png));
    let (ok, said) = save(&path, "1/0", &run.path().join("nowhere"));
    assert!(
        !ok && said.contains("are gone") && said.contains("keep_groups"),
        "{said}"
    );
    assert!(!path.join("samples/groups").exists());
    tell(&path, "stop");
}
