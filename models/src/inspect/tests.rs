use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};

use super::*;
use crate::editor::{Editor, ImageSize, Parts};
use crate::golden::Case;
use crate::lora::{Checkpointing, LoraConfig};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A pipeline folder that may be spoilt.
fn pipeline() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("editor");
    copy(&Case::all("kontext_pipeline")[1].path("pipeline"), &folder);
    (root, folder)
}

fn problems(folder: &Path) -> Vec<String> {
    let inspection = inspect(folder).unwrap();
    inspection.all_problems().map(str::to_owned).collect()
}

fn load_error(folder: &Path) -> String {
    let editor = Editor::load(folder, &Device::flex(), Parts::All);
    editor.unwrap_err().to_string()
}

fn workload(dtype: DType) -> Workload {
    Workload {
        dtype,
        size: ImageSize::square(16),
        group_size: 3,
        max_sequence_length: 7,
        checkpointing: Checkpointing::Block,
        micro_batch_size: 2,
        lanes: 1,
        shards: 8,
        lora: LoraConfig {
            rank: 2,
            alpha: 4.0,
            target_modules: vec!["to_q".into()],
        },
    }
}

#[test]
fn a_sound_pipeline_is_described_and_its_roles_measured() {
    let (_root, folder) = pipeline();
    let inspection = inspect(&folder).unwrap();
    assert_eq!(
        inspection.all_problems().collect::<Vec<_>>(),
        Vec::<&str>::new()
    );
    assert_eq!(
        (inspection.kind, inspection.class.as_str()),
        (FolderKind::Editor, "FluxKontextPipeline")
    );
    let names: Vec<&str> = inspection
        .components
        .iter()
        .map(|part| part.name.as_str())
        .collect();
    let expected = [
        "scheduler",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "transformer",
        "vae",
    ];
    assert_eq!(names, expected);
    let tensors = inspection.components[5].tensors.as_ref().unwrap();
    // The case is saved in bf16: two bytes a parameter and nothing else.
    assert_eq!(
        tensors.stored,
        [("BF16".to_owned(), 2 * tensors.parameters)].into()
    );
    for role in [Role::RolloutWorker, Role::Learner] {
        let [narrow, wide] = [DType::BF16, DType::F32]
            .map(|dtype| estimate(&inspection, role, &workload(dtype)).unwrap());
        assert_eq!(narrow.lines[0].bytes, 2 * tensors.parameters);
        assert_eq!(wide.lines[0].bytes, 4 * tensors.parameters);
        assert_eq!(
            narrow.bytes,
            narrow.lines.iter().map(|line| line.bytes).sum::<u64>()
        );
    }
    let refused = estimate(&inspection, Role::RewardWorker, &workload(DType::F32)).unwrap_err();
    assert!(
        refused
            .to_string()
            .ends_with("the reward-worker needs a judge, the folder holds a base editor")
    );
}

#[test]
fn every_part_that_is_broken_is_told_at_once() {
    let (_root, folder) = pipeline();
    let weights = folder.join("transformer/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 10]).unwrap();
    fs::remove_dir_all(folder.join("tokenizer_2")).unwrap();
    fs::rename(
        folder.join("vae/config.json"),
        folder.join("vae/elsewhere.json"),
    )
    .unwrap();
    let problems = problems(&folder);
    assert_eq!(problems.len(), 3, "{problems:#?}");
    assert!(
        problems[0].contains("tokenizer_2: there is no such folder, expected a tokenizer"),
        "{problems:#?}"
    );
    assert!(
        problems[1].contains("diffusion_pytorch_model.safetensors: its"),
        "{problems:#?}"
    );
    assert!(problems[1].contains("truncated"), "{problems:#?}");
    assert!(problems[2].contains("vae/config.json"), "{problems:#?}");
}

#[test]
fn what_the_check_finds_is_what_loading_says() {
    let (_root, folder) = pipeline();
    let weights = folder.join("text_encoder/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..100]).unwrap();
    assert_eq!(problems(&folder), [load_error(&folder)]);

    let (_root, folder) = pipeline();
    let config = folder.join("transformer/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("\"num_single_layers\": 1", "\"num_single_layers\": 3"),
    )
    .unwrap();
    let problem = problems(&folder).swap_remove(0);
    assert!(
        problem.contains("missing (28): single_transformer_blocks.{1..2}.attn.norm_k.weight"),
        "{problem}"
    );
    let error = load_error(&folder);
    assert!(
        error.contains("missing (28): single_transformer_blocks.{1..2}.attn.norm_k.weight"),
        "{error}"
    );
}

#[test]
fn folders_that_are_something_else_say_what_they_are() {
    let (root, folder) = pipeline();
    let error = |folder: &Path| inspect(folder).unwrap_err().to_string();
    assert!(error(root.path()).contains("neither model_index.json"));
    assert!(error(&root.path().join("nowhere")).ends_with("there is no such folder"));
    let inner = load_error(&folder.join("transformer"));
    assert!(inner.ends_with("not a base editor: model_index.json is missing; the folder is a model of class FluxTransformer2DModel"), "{inner}");
    let judge = crate::judge::Judge::load(&folder, &Device::flex())
        .unwrap_err()
        .to_string();
    assert!(judge.ends_with("not a Qwen2.5-VL model: config.json is missing; the folder is a pipeline of class FluxKontextPipeline"), "{judge}");
    assert_eq!(problems(&folder.join("transformer")).len(), 1);
}
