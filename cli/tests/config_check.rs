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
