//! Every golden case of the reference packages against our own components.
//!
//! Walks the case folders under `tools/parity/cases/` and under each path of `$PARITY_CASES`
//! (colon separated), prints one line per case, and fails with all that went wrong. The format is
//! described in `tools/parity/README.md`; a new case of a known component needs no code here.
//!
//! `RETOUCH_TEST_DEVICE` names the device that computes, by default `cpu`, and `RETOUCH_PARITY_ONLY` the cases:
//! comma separated parts of their names, by default all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use device::TestDevice;
use retouch_models::ops;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

#[path = "parity/case.rs"]
mod case;
#[path = "parity/compare.rs"]
mod compare;
#[path = "parity/components.rs"]
mod components;
#[path = "parity/device.rs"]
mod device;
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
    let found = folders.len();
    let only = std::env::var("RETOUCH_PARITY_ONLY").unwrap_or_default();
    let folders = walk::selected(folders, &only).expect("RETOUCH_PARITY_ONLY");
    let device = TestDevice::from_environment().expect("a device");
    let report = report::run_all(&folders, &device);
    println!(
        "{report}, {} by RETOUCH_PARITY_ONLY; device: {}, ops: {}",
        found - folders.len(),
        device.name,
        ops::path_name()
    );
    assert!(report.failures.is_empty(), "{}", report.failures.join("\n"));
}

/// `RETOUCH_OPS=plain` takes burn's own ops in place of ours, as devices without kernels of ours do. The switch is read
/// once in a process, so the cases run in another one.
#[test]
fn every_case_agrees_on_plain_ops() {
    let child = Command::new(std::env::current_exe().expect("this test's program"))
        .args([
            "--exact",
            "every_case_agrees_with_its_reference",
            "--nocapture",
        ])
        .env("RETOUCH_OPS", "plain")
        .env_remove("RETOUCH_TEST_DEVICE")
        .output()
        .expect("it can be started");
    let said = String::from_utf8_lossy(&child.stdout);
    println!("{said}");
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{}: {errors}", child.status);
    assert!(said.contains("ops: plain"), "{said}");
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
    let report = report_on(folder);
    assert_eq!(report.failures.len(), 1, "{report}");
    report.failures[0].clone()
}

fn report_on(folder: &Path) -> report::Report {
    let folders = walk::case_folders(&[folder.to_owned()]).expect("a case folder");
    let cpu = TestDevice::named("cpu").expect("a device");
    report::run_all(&folders, &cpu)
}

#[test]
fn a_case_elsewhere_is_found_and_judged() {
    let copy = copy_of("nft_loss__all");
    let report = report_on(copy.path());
    assert!(report.failures.is_empty(), "{report}");
    assert_eq!(report.agreed, 1);
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

#[test]
fn an_unknown_type_is_named() {
    let copy = copy_of("nft_loss__all");
    std::fs::write(
        copy.path().join("case.toml"),
        "component = \"nft_loss\"\ndtype = \"f8\"\n",
    )
    .expect("written");
    let failure = failure_of(copy.path());
    assert!(failure.contains("dtype is \"f8\""), "{failure}");
}

#[test]
fn a_wrong_parameter_turns_an_output_in_bf16() {
    let copy = copy_of("lora_linear__computed_in_bf16");
    let path = copy.path().join("case.toml");
    let text = std::fs::read_to_string(&path).expect("case.toml");
    std::fs::write(&path, text.replace("alpha = 8.0", "alpha = 7.0")).expect("written");
    let failure = failure_of(copy.path());
    assert!(failure.contains("out.y: off by cosine 0.99"), "{failure}");
}

#[test]
fn the_right_direction_with_a_wrong_length_is_a_failure() {
    let copy = copy_of("nft_step__computed_in_bf16");
    expect_also(copy.path(), "out.loss", 1000.0);
    let failure = failure_of(copy.path());
    assert!(
        failure.contains("out.loss: off by cosine 1.000000, norm -"),
        "{failure}"
    );
}

#[test]
fn names_select_cases_and_a_mistyped_one_is_an_error() {
    let folders = [
        "/a/solver__euler",
        "/a/nft_loss__all",
        "/a/nft_step__published",
    ];
    let folders = || folders.map(PathBuf::from).to_vec();
    let count = |only| walk::selected(folders(), only).map(|selected| selected.len());
    assert_eq!(count("").expect("all"), 3);
    assert_eq!(count("solver,nft_step").expect("two"), 2);
    let error = count("solvers").expect_err("nothing to test");
    assert!(error.to_string().contains("solvers"), "{error}");
}
