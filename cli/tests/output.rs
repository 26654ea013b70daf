//! What a command says when nobody listens.

use std::process::Command;

#[test]
fn a_reader_that_leaves_early_ends_a_command_well() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(["config", "show", "examples/smoke.toml"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stdout(writer)
        .output()
        .expect("retouch starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert_eq!(said, "");
}
