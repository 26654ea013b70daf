//! `retouch edit` on pipeline folders as diffusers saved them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{Rgb, RgbImage};

const FLUX: &str = "kontext_pipeline__dpm2_truncated_prompt";
const QWEN: &str = "qwen_image_edit_pipeline__sequential_positions";

fn pipeline(case: &str) -> PathBuf {
    let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/parity/cases");
    Path::new(cases).join(case).join("pipeline")
}

/// Two pictures of different aspects.
fn pictures(folder: &Path) -> [PathBuf; 2] {
    [(24, 16), (16, 40)].map(|(width, height)| {
        let path = folder.join(format!("{width}x{height}.png"));
        let picture = RgbImage::from_fn(width, height, |x, y| Rgb([9 * x as u8, 5 * y as u8, 80]));
        picture.save(&path).expect("a written picture");
        path
    })
}

/// Edits the first picture into `folder/out.png`.
fn edit(folder: &Path, case: &str, more: &[&str]) -> Output {
    let _ = std::fs::remove_file(folder.join("out.png"));
    Command::new(env!("CARGO_BIN_EXE_retouch"))
        .arg("edit")
        .arg(&pictures(folder)[0])
        .args(["make it red", "--num-inference-steps", "2", "--model"])
        .arg(pipeline(case))
        .arg("--output")
        .arg(folder.join("out.png"))
        .args(more)
        .output()
        .expect("retouch starts")
}

fn edited(folder: &Path, case: &str, more: &[&str]) -> RgbImage {
    let output = edit(folder, case, more);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    let image = image::open(folder.join("out.png")).expect("an edited picture");
    image.to_rgb8()
}

#[test]
fn one_picture_is_edited_by_either_base_model() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for case in [FLUX, QWEN] {
        let image = edited(folder.path(), case, &[]);
        assert_eq!(image.dimensions(), (24, 16), "{case}");
        let guided = edited(folder.path(), case, &["--true-cfg-scale", "3"]);
        assert_ne!(guided, image, "{case}");
    }
}

#[test]
fn several_pictures_are_for_models_that_take_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [_, second] = pictures(folder.path()).map(|path| path.display().to_string());
    // The result is shaped after the last picture.
    let image = edited(folder.path(), QWEN, &["--image", &second]);
    assert_eq!(image.dimensions(), (16, 40));
    let output = edit(folder.path(), FLUX, &["--image", &second]);
    let message = String::from_utf8_lossy(&output.stderr);
    let expected = "2 source images, a FluxKontextPipeline takes one only";
    assert!(
        !output.status.success() && message.contains(expected),
        "{message}"
    );
    let more = ["--image", &second, "--image", &second, "--image", &second];
    let output = edit(folder.path(), QWEN, &more);
    let message = String::from_utf8_lossy(&output.stderr);
    let expected = "4 source images, a QwenImageEditPlusPipeline takes 1 to 3";
    assert!(
        !output.status.success() && message.contains(expected),
        "{message}"
    );
}

/// What `retouch edit` says when it refuses.
fn refusal(folder: &Path, case: &str, more: &[&str]) -> String {
    let output = edit(folder, case, more);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

#[test]
fn an_adapter_of_another_model_is_one_clear_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/parity/cases");
    let adapter = Path::new(cases).join("peft_folder__two_targets_rslora_bf16/adapter");
    let adapter = adapter.display().to_string();
    for case in [FLUX, QWEN] {
        let message = refusal(folder.path(), case, &["--adapter", &adapter]);
        let expected = "the adapter does not fit this model";
        assert!(message.contains(expected), "{message}");
        assert!(message.contains("adapter_model.safetensors"), "{message}");
    }
    let message = refusal(folder.path(), FLUX, &["--adapter", "/nowhere"]);
    assert!(
        message.contains("/nowhere: there is no such file or folder, expected an adapter"),
        "{message}"
    );
    let model = pipeline(FLUX).display().to_string();
    let message = refusal(folder.path(), FLUX, &["--adapter", &model]);
    assert!(
        message.contains("no adapter: neither adapter_config.json nor"),
        "{message}"
    );
}

#[test]
fn one_step_is_too_few_where_the_last_noise_level_is_moved() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = edit(folder.path(), QWEN, &["--true-cfg-scale", "1"]);
    assert!(output.status.success());
    let output = Command::new(env!("CARGO_BIN_EXE_retouch"))
        .arg("edit")
        .arg(&pictures(folder.path())[0])
        .args(["make it red", "--num-inference-steps", "1", "--model"])
        .arg(pipeline(QWEN))
        .arg("--output")
        .arg(folder.path().join("one.png"))
        .output()
        .expect("retouch starts");
    let message = String::from_utf8_lossy(&output.stderr);
    let expected = "num_inference_steps = 1, but the scheduler's shift_terminal = 0.02";
    assert!(
        !output.status.success() && message.contains(expected),
        "{message}"
    );
}

/// What the command line is refused with, before the picture is made.
fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_retouch"))
        .arg("edit")
        .arg(&pictures(folder)[0])
        .args(["make it red", "--model"])
        .arg(pipeline(FLUX))
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("retouch starts");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    message
}

#[test]
fn an_output_that_can_not_be_written_is_refused_before_the_work() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir(folder.path().join("there.png")).expect("a folder");
    for (output, expected) in [
        (
            "out",
            "can't write out: expected a name that ends in one of .jpg, .jpeg, .png, .webp",
        ),
        (
            "out.tiff",
            "can't write out.tiff: expected a name that ends in one of .jpg",
        ),
        (
            "none/out.png",
            "can't write none/out.png: the folder none is not there",
        ),
        (
            "there.png",
            "can't write there.png: is a folder, expected the name of a file",
        ),
        (
            "/proc/out.png",
            "can't write /proc/out.png: /proc takes no files: ",
        ),
    ] {
        let message = refused(folder.path(), &["--output", output]);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn numbers_that_make_no_sense_are_refused_with_what_would() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (arguments, expected) in [
        (
            ["--guidance-scale", "nan"],
            "expected a number from 0.0 to 100.0",
        ),
        (
            ["--guidance-scale", "-inf"],
            "expected a number from 0.0 to 100.0",
        ),
        (
            ["--true-cfg-scale", "-1"],
            "expected a number from 1.0 to 100.0",
        ),
        (
            ["--num-inference-steps", "0"],
            "expected a whole number from 1 to 1000",
        ),
        (
            ["--max-sequence-length", "0"],
            "expected a whole number from 1 to 4096",
        ),
        (["--height", "0"], "expected a whole number from 1 to 8192"),
        (["--height", "7"], "--height 7 is not a multiple of 4"),
        (["--width", "-8"], "expected a whole number from 1 to 8192"),
        (["--lora-scale", "nan"], "expected a finite number"),
    ] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--output", "out.png"]);
        let message = refused(folder.path(), &arguments);
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
    assert!(!folder.path().join("out.png").exists());
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_by_evaluate_too() {
    let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/parity/cases");
    let adapter = Path::new(cases).join("peft_folder__attention/adapter");
    let output = Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(["evaluate", "examples/smoke.toml", "--adapter"])
        .arg(adapter)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("retouch starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    let expected = "the adapter does not fit this model, read as peft names layers";
    assert!(message.contains(expected), "{message}");
}

#[test]
fn sft_refuses_the_same_before_it_reads_anything() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("file"), "").expect("a file");
    for (arguments, expected) in [
        (
            ["--learning-rate", "nan"],
            "expected a number from 1e-12 to 1.0",
        ),
        (
            ["--learning-rate", "-1e-4"],
            "expected a number from 1e-12 to 1.0",
        ),
        (
            ["--lora-rank", "0"],
            "expected a whole number from 1 to 4096",
        ),
        (
            ["--lora-alpha", "inf"],
            "expected a number from 1e-6 to 1000000.0",
        ),
        (["--steps", "0"], "expected a whole number from 1 to"),
        (
            ["--ema-decay-max", "1"],
            "expected a number from 0.0 to 0.999999",
        ),
        (
            ["--output", "file/inner"],
            "can't write file/inner: file is a file, expected a folder",
        ),
        (["--height", "7"], "--height 7 is not a multiple of 4"),
    ] {
        let output = match arguments[0] {
            "--output" => &[][..],
            _ => &["--output", "out"],
        };
        let output = Command::new(env!("CARGO_BIN_EXE_retouch"))
            .args(["sft", "--dataset", "nowhere", "--model"])
            .arg(pipeline(FLUX))
            .args(arguments)
            .args(output)
            .current_dir(folder.path())
            .output()
            .expect("retouch starts");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
}
