//! `retouch model check` on folders as they are downloaded, and as they should not be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FLUX: &str = "kontext_pipeline__dpm2_truncated_prompt/pipeline";
const QWEN: &str = "qwen_image_edit_pipeline__sequential_positions/pipeline";

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn cases() -> PathBuf {
    repository().join("tools/parity/cases")
}

fn check(folder: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(["model", "check"])
        .arg(folder)
        .args(more)
        .output()
        .expect("retouch starts")
}

/// What is printed about a sound folder.
fn sound(folder: &Path) -> String {
    let output = check(folder, &[]);
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(
        output.status.success() && stderr.is_empty(),
        "{}: {stdout}{stderr}",
        folder.display()
    );
    stdout
}

/// What is said about a folder that can't be used: problems, then the error.
fn refused(folder: &Path) -> String {
    let output = check(folder, &[]);
    assert_eq!(output.status.code(), Some(2), "{}", folder.display());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let stdout = text(&output.stdout);
    let problems = stdout.lines().filter(|line| line.starts_with("problem: "));
    let problems: String = problems.map(|line| format!("{line}\n")).collect();
    problems + &text(&output.stderr)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, target).expect("a copy");
        }
    }
}

/// A copy of a case's pipeline that may be spoilt.
fn pipeline(case: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&cases().join(case), folder.path());
    folder
}

#[test]
fn editors_are_told_with_the_needs_of_both_of_their_roles() {
    let tiny = repository().join("assets/tiny/editor");
    for folder in [cases().join(FLUX), cases().join(QWEN), tiny] {
        let text = sound(&folder);
        for part in ["transformer", "vae", "text_encoder", "scheduler"] {
            assert!(text.contains(part), "{text}");
        }
        for line in [
            "rollout-worker needs",
            "FLOP per image, and reads",
            "learner needs",
            "FLOP per (sample, timestep) pair, and reads",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("does not fit"), "{text}");
    }
}

#[test]
fn a_judge_is_told_with_the_needs_of_a_reward_worker() {
    let text = sound(&repository().join("assets/tiny/judge"));
    assert!(text.contains("reward-worker needs"), "{text}");
    assert!(text.contains("FLOP per edit, and reads"), "{text}");
    assert!(!text.contains("warning"), "{text}");
}

#[test]
fn folders_of_something_else_are_one_error() {
    let text = refused(&cases());
    assert!(
        text.contains("neither model_index.json, as a diffusers pipeline has, nor config.json"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1, "{text}");
    let text = refused(&cases().join("nowhere"));
    assert!(text.contains("nowhere: there is no such folder"), "{text}");
    let text = refused(&cases().join(QWEN).join("transformer"));
    assert!(
        text.contains("a model of class QwenImageTransformer2DModel is one part of an editor"),
        "{text}"
    );
    let broken = pipeline(FLUX);
    fs::write(broken.path().join("model_index.json"), "{").expect("written");
    let text = refused(broken.path());
    assert!(
        text.contains("model_index.json: no sound JSON: EOF"),
        "{text}"
    );
    let text = refused(&cases().join("peft_folder__attention/adapter"));
    assert!(text.contains("; it is an adapter"), "{text}");
}

#[test]
fn a_truncated_file_is_named_with_its_size() {
    for case in [FLUX, QWEN] {
        let folder = pipeline(case);
        let weights = "transformer/diffusion_pytorch_model.safetensors";
        let path = folder.path().join(weights);
        let bytes = fs::read(&path).expect("weights");
        fs::write(&path, &bytes[..bytes.len() - 100]).expect("written");
        let text = refused(folder.path());
        assert!(
            text.contains(weights) && text.contains("truncated"),
            "{text}"
        );
        assert_eq!(text.matches("problem: ").count(), 1, "{text}");
    }
}

#[test]
fn what_a_failed_download_left_is_said() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 23802816640\n";
    let page = "<!DOCTYPE html><html><title>Log in</title></html>";
    for (file, content, part) in [
        (
            "transformer/diffusion_pytorch_model.safetensors",
            pointer,
            "git-LFS pointer to 23802816640 bytes",
        ),
        (
            "vae/diffusion_pytorch_model.safetensors",
            page,
            "an HTML page",
        ),
        ("tokenizer_2/tokenizer.json", pointer, "git-LFS pointer"),
        ("tokenizer/vocab.json", page, "an HTML page"),
        ("tokenizer/merges.txt", pointer, "git-LFS pointer"),
        ("text_encoder/config.json", page, "an HTML page"),
        ("model_index.json", page, "an HTML page"),
        ("text_encoder_2/model.safetensors", "", "the file is empty"),
    ] {
        let folder = pipeline(FLUX);
        fs::write(folder.path().join(file), content).expect("written");
        let text = refused(folder.path());
        assert!(text.contains(file) && text.contains(part), "{file}: {text}");
        let problems = text.matches("problem: ").count();
        assert!(problems <= 1, "{text}");
    }
}

#[test]
fn quantised_weights_are_named_by_their_scheme() {
    let folder = pipeline(FLUX);
    let path = folder.path().join("transformer/config.json");
    let text = fs::read_to_string(&path).expect("a configuration");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    config["quantization_config"] =
        serde_json::json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    fs::write(&path, config.to_string()).expect("written");
    let text = refused(folder.path());
    let expected =
        "transformer/config.json: the weights are quantised (bitsandbytes, 4 bits): download";
    assert!(text.contains(expected), "{text}");
    // null says that they are not.
    config["quantization_config"] = serde_json::Value::Null;
    fs::write(&path, config.to_string()).expect("written");
    sound(folder.path());
}

#[test]
fn pickles_are_refused_with_the_command_that_converts_them() {
    let folder = pipeline(FLUX);
    let transformer = folder.path().join("transformer");
    let weights = transformer.join("diffusion_pytorch_model.safetensors");
    fs::rename(weights, transformer.join("diffusion_pytorch_model.bin")).expect("renamed");
    let text = refused(folder.path());
    assert!(
        text.contains("pickles are not read") && text.contains("python3 -c"),
        "{text}"
    );
    assert_eq!(text.matches("problem: ").count(), 1, "{text}");
}

#[test]
fn variants_are_taken_where_the_plain_files_are_absent() {
    let folder = pipeline(FLUX);
    for (part, plain) in [
        ("transformer", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ] {
        let of = |end: &str| folder.path().join(part).join(format!("{plain}.{end}"));
        fs::rename(of("safetensors"), of("fp16.safetensors")).expect("renamed");
    }
    sound(folder.path());
}

#[test]
fn a_missing_tokenizer_is_named() {
    for (case, tokenizer) in [(FLUX, "tokenizer_2"), (QWEN, "tokenizer")] {
        let folder = pipeline(case);
        fs::remove_dir_all(folder.path().join(tokenizer)).expect("removed");
        let text = refused(folder.path());
        let expected = format!("{tokenizer}: there is no such folder, expected a tokenizer");
        assert!(text.contains(&expected), "{text}");
        assert_eq!(text.matches("problem: ").count(), 1, "{text}");
    }
    let folder = pipeline(FLUX);
    fs::remove_file(folder.path().join("tokenizer_2/tokenizer.json")).expect("removed");
    let text = refused(folder.path());
    assert!(text.contains("tokenizer_2"), "{text}");
    assert_eq!(text.matches("problem: ").count(), 1, "{text}");
}

#[test]
fn a_role_that_needs_another_model_says_which() {
    let output = check(&cases().join(QWEN), &["--role", "reward-worker"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    let expected = "the reward-worker needs a judge, the folder holds a base editor";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn json_has_the_same() {
    let output = check(&cases().join(QWEN), &["--json", "--role", "learner"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(value["problems"], serde_json::json!([]));
    assert_eq!(value["inspection"]["class"], "QwenImageEditPlusPipeline");
    let learner = &value["memory"][0];
    assert_eq!(learner["role"], "learner");
    assert!(learner["bytes"].as_u64() > Some(0));
    assert_eq!(learner["effort"]["unit"], "training_pair");
    assert!(learner["effort"]["flops"].as_u64() > Some(0));
}

#[test]
fn a_card_that_is_elsewhere_is_planned_for() {
    let folder = repository().join("assets/tiny/editor");
    let roomy = check(&folder, &["--gpu-memory", "80GiB"]);
    let text = String::from_utf8_lossy(&roomy.stdout).into_owned();
    assert!(roomy.status.success(), "{text}");
    for part in [
        "learner fits into 80.0 GiB",
        "rollout-worker fits into 80.0 GiB",
        "the driver's context",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(
        !text.contains("Adam"),
        "the optimizer is on the host: {text}"
    );

    let tight = check(&folder, &["--gpu-memory", "512MiB", "--json"]);
    assert_eq!(tight.status.code(), Some(2));
    let told: serde_json::Value = serde_json::from_slice(&tight.stdout).expect("JSON");
    assert_eq!(told["card_bytes"], 512u64 << 20);
    let problems = told["problems"].as_array().expect("problems");
    assert_eq!(problems.len(), 2, "{problems:?}");
    let problem = problems[0].as_str().expect("a sentence");
    assert!(
        problem.contains("does not fit: ") && problem.ends_with("needed, 512.0 MiB there"),
        "{problem}"
    );
}

#[test]
fn a_size_without_a_unit_and_a_card_that_is_not_there_are_refused() {
    let folder = repository().join("assets/tiny/editor");
    for (arguments, part) in [
        (["--gpu-memory", "80"], "is no size"),
        (["--device", "cuda:255"], "--device cuda:255: "),
        (["--device", "gpu"], "unknown device"),
    ] {
        let output = check(&folder, &arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn the_targets_of_a_run_must_be_layers_of_the_editor() {
    let folder = cases().join(FLUX);
    let targets = |targets: &str| {
        let set = format!("lora.target_modules={targets}");
        check(&folder, &["--set", &set])
    };
    assert!(targets(r#"["to_q", "net.0.proj"]"#).status.success());
    let output = targets(r#"["to_q", "to_qq"]"#);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stdout);
    let expected = "target_modules: \"to_qq\" matches no layer of the model; did you mean \"to_q\"? There are ";
    assert!(
        said.contains(expected) && said.contains("attn.to_out.0"),
        "{said}"
    );
    // The default's are not asked for.
    assert!(check(&folder, &[]).status.success());
}
