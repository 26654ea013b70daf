//! Every golden case of the reference packages against our own components.
//!
//! Walks the case folders under `tools/parity/cases/` and under each path of `$PARITY_CASES`
//! (colon separated), prints one line per case, and fails with all that went wrong. The format is
//! described in `tools/parity/README.md`; a new case of a known component needs no code here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

#[path = "parity/case.rs"]
mod case;
#[path = "parity/compare.rs"]
mod compare;
#[path = "parity/components.rs"]
mod components;
#[path = "parity/report.rs"]
mod report;
#[path = "parity/walk.rs"]
mod walk;

fn own_cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/parity/cases")
}

fn roots() -> Vec<PathBuf> {
    let more = std::env::var_os("PARITY_CASES").unwrap_or_default();
    let more = std::env::split_paths(&more).filter(|path| !path.as_os_str().is_empty());
    std::iter::once(own_cases()).chain(more).collect()
}

#[test]
fn every_case_agrees_with_its_reference() {
    let folders = walk::case_folders(&roots()).expect("the case folders can be walked");
    let report = report::run_all(&folders);
    println!("{report}");
    assert!(report.failures.is_empty(), "{}", report.failures.join("\n"));
}

/// Copies a case so that a test may spoil it.
fn copy_of(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a temporary folder");
    for entry in std::fs::read_dir(own_cases().join(name)).expect("the case is there") {
        let path = entry.expect("an entry").path();
        let to = copy.path().join(path.file_name().expect("a name"));
        std::fs::copy(&path, to).expect("a copy");
    }
    copy
}

fn failure_of(folder: &Path) -> String {
    let folders = walk::case_folders(&[folder.to_owned()]).expect("a case folder");
    let report = report::run_all(&folders);
    assert_eq!(report.failures.len(), 1, "{report}");
    report.failures[0].clone()
}

#[test]
fn a_case_elsewhere_is_found_and_judged() {
    let copy = copy_of("nft_loss__all");
    let report = report::run_all(&walk::case_folders(&[copy.path().to_owned()]).expect("found"));
    assert!(report.failures.is_empty(), "{report}");
    assert_eq!(report.lines.len(), 1);
}

#[test]
fn an_unknown_component_is_named() {
    let copy = copy_of("nft_loss__all");
    std::fs::write(
        copy.path().join("case.toml"),
        "component = \"unheard_of\"\n",
    )
    .expect("written");
    let failure = failure_of(copy.path());
    assert!(
        failure.contains("unknown component \"unheard_of\""),
        "{failure}"
    );
}

#[test]
fn a_wrong_parameter_moves_the_output_beyond_tolerance() {
    let copy = copy_of("nft_loss__all");
    let path = copy.path().join("case.toml");
    let text = std::fs::read_to_string(&path).expect("case.toml");
    std::fs::write(&path, text.replace("beta = 1.0", "beta = 0.5")).expect("written");
    let failure = failure_of(copy.path());
    assert!(failure.contains("grad.v_theta"), "{failure}");
}

/// Adds a tensor of one number to a case's expectations.
fn expect_also(folder: &Path, name: &str, value: f32) {
    let path = folder.join("io.safetensors");
    let bytes = std::fs::read(&path).expect("io.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("tensors");
    let value = value.to_le_bytes();
    let view = TensorView::new(Dtype::F32, vec![1], &value).expect("a number");
    let mut tensors: BTreeMap<_, _> = file.tensors().into_iter().collect();
    tensors.insert(name.to_owned(), view);
    let bytes = safetensors::serialize(tensors, None).expect("serialised");
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn an_output_that_is_not_computed_is_a_failure() {
    let copy = copy_of("nft_loss__all");
    expect_also(copy.path(), "out.unheard_of", 1.0);
    let failure = failure_of(copy.path());
    assert!(
        failure.contains("out.unheard_of: not computed"),
        "{failure}"
    );
}

#[test]
fn nothing_agrees_with_nan() {
    let copy = copy_of("nft_loss__all");
    expect_also(copy.path(), "out.loss", f32::NAN);
    let failure = failure_of(copy.path());
    assert!(failure.contains("out.loss: not finite"), "{failure}");
}

#[test]
fn a_path_without_cases_is_an_error() {
    let empty = tempfile::tempdir().expect("a temporary folder");
    let error = walk::case_folders(&[empty.path().to_owned()]).expect_err("nothing to test");
    assert!(error.to_string().contains("no case.toml"), "{error}");
}
