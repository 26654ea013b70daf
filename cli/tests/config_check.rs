//! `retouch config check` and the models that a run file names: their folders, and their ids on the Hub.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn assets() -> PathBuf {
    let assets = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/tiny"));
    assets.canonicalize().expect("the small models")
}

/// Runs a command on the example whose models are `editor` and `judge`, with `cache` as the Hub's.
fn retouch(command: &[&str], [editor, judge]: [&str; 2], cache: &Path) -> Output {
    let template = assets().join("judge/template.txt");
    Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(command)
        .arg("examples/smoke.toml")
        .args(["--set", &format!("model.path={editor}")])
        .args([
            "--set",
            &format!("reward.terms=[{{ path = {judge:?}, template = {template:?} }}]"),
        ])
        .env("HF_HUB_CACHE", cache)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("retouch starts")
}

fn check(models: [&str; 2], cache: &Path) -> Output {
    retouch(&["config", "check"], models, cache)
}

/// What is said of models that no run can begin with; `launch` says the same.
fn refused(models: [&str; 2], cache: &Path) -> String {
    let said = [&["config", "check"][..], &["launch"]].map(|command| {
        let output = retouch(command, models, cache);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
        said
    });
    assert_eq!(said[0], said[1]);
    said[0].clone()
}

/// A copy of the small judge with another weight file.
fn judge_with_weights(bytes: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for entry in fs::read_dir(assets().join("judge")).expect("the judge") {
        let entry = entry.expect("a file");
        fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a copy");
    }
    fs::write(folder.path().join("model.safetensors"), bytes).expect("written");
    folder
}

#[test]
fn models_are_looked_into_before_anything_starts() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let assets = assets();
    let [editor, judge] = ["editor", "judge"].map(|name| assets.join(name).display().to_string());
    let output = check([&editor, &judge], cache.path());
    assert!(output.status.success(), "{output:?}");

    let pointer = judge_with_weights(b"version https://git-lfs.github.com/spec/v1\nsize 7\n");
    let pointer = pointer.path().to_str().expect("UTF-8");
    let said = refused([&editor, pointer], cache.path());
    assert!(
        said.contains("reward.terms.path: ") && said.contains("git-LFS pointer to 7 bytes"),
        "{said}"
    );
    let said = refused([&judge, &judge], cache.path());
    assert!(
        said.contains("model.path: ") && said.contains("model_index.json is missing"),
        "{said}"
    );
    let said = refused(
        [&editor, &assets.join("editor/vae").display().to_string()],
        cache.path(),
    );
    assert!(
        said.contains("reward.terms.path: ") && said.contains("is one part of an editor"),
        "{said}"
    );
}

#[test]
fn ids_name_folders_of_the_hubs_cache() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    for (id, model) in [("Org--editor", "editor"), ("Org--judge", "judge")] {
        let repository = cache.path().join(format!("models--{id}"));
        fs::create_dir_all(repository.join("snapshots")).expect("our own folder");
        fs::create_dir_all(repository.join("refs")).expect("our own folder");
        fs::write(repository.join("refs/main"), "0123").expect("written");
        symlink(assets().join(model), repository.join("snapshots/0123")).expect("a link");
    }
    let output = check(["Org/editor", "Org/judge"], cache.path());
    assert!(output.status.success(), "{output:?}");
    let repository = cache
        .path()
        .join("models--Org--editor")
        .display()
        .to_string();
    let output = check([&repository, "Org/judge"], cache.path());
    assert!(output.status.success(), "{output:?}");

    let said = refused(["Org/editor", "Org/absent"], cache.path());
    let command = "download it with `hf download Org/absent`";
    assert!(
        said.contains("reward.terms.path: Org/absent: ") && said.contains(command),
        "{said}"
    );
}
