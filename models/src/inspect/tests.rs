use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use retouch_settings::DeviceName;

use super::*;
use crate::editor::{Editor, ImageSize, Parts};
use crate::golden::Case;
use crate::lora::{Checkpointing, LoraConfig};
use crate::weights::{read_config, write_config};

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

/// The published pipelines' small cases.
fn pipelines() -> Vec<PathBuf> {
    let components = ["kontext_pipeline", "qwen_image_edit_pipeline"];
    let cases = components.into_iter().flat_map(Case::all);
    cases.map(|case| case.path("pipeline")).collect()
}

/// A copy of the Qwen-Image-Edit pipeline of a variant.
fn qwen_pipeline(variant: &str) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("editor");
    let all = pipelines().into_iter();
    let mut named = all.filter(|path| path.to_string_lossy().contains(variant));
    copy(&named.next().unwrap(), &folder);
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
        device: DeviceName::Cpu,
        dtype,
        size: ImageSize::square(16),
        sources: 1,
        group_size: 3,
        max_sequence_length: 7,
        num_inference_steps: 6,
        guidance: Guidance::None,
        checkpointing: Checkpointing::Block,
        micro_batch_size: 2,
        lanes: 1,
        shards: 8,
        lora: LoraConfig {
            rank: 2,
            alpha: 4.0,
            target_modules: vec!["to_q".into()],
        },
        reference: Reference::Base,
    }
}

#[test]
fn a_part_that_nobody_reads_is_no_problem() {
    let (_root, folder) = pipeline();
    let path = folder.join("model_index.json");
    let mut index: serde_json::Value = read_config(&path).unwrap();
    index["safety_checker"] = serde_json::json!(["diffusers", "FluxSafetyChecker"]);
    write_config(&path, &index).unwrap();
    let inspection = inspect(&folder).unwrap();
    assert_eq!(inspection.all_problems().next(), None);
    let expected = "safety_checker: a part of class FluxSafetyChecker is not read";
    assert_eq!(inspection.warnings, [expected]);
    Editor::load(&folder, &Device::flex(), Parts::All).unwrap();
    // One that is read may not be of an unknown class.
    index["vae"] = serde_json::json!(["diffusers", "AutoencoderTiny"]);
    write_config(&path, &index).unwrap();
    let problems = problems(&folder);
    assert_eq!(
        problems,
        ["vae: the class AutoencoderTiny is not supported"]
    );
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
fn every_saved_pipeline_is_sound_for_both_of_its_roles() {
    let folders = pipelines();
    assert!(folders.len() >= 6, "{folders:?}");
    for folder in folders {
        let inspection = inspect(&folder).unwrap();
        let problems: Vec<&str> = inspection.all_problems().collect();
        assert_eq!(problems, Vec::<&str>::new(), "{}", folder.display());
        for role in [Role::RolloutWorker, Role::Learner] {
            let workload = Workload {
                size: ImageSize::square(64),
                ..workload(DType::F32)
            };
            let estimate = estimate(&inspection, role, &workload).unwrap();
            let effort = &estimate.effort;
            assert!(estimate.lines.iter().all(|line| line.bytes > 0));
            assert!(effort.lines.iter().all(|line| line.flops > 0), "{effort:?}");
            let flops: u64 = effort.lines.iter().map(|line| line.flops).sum();
            assert_eq!(effort.flops, flops);
        }
    }
}

#[test]
fn guidance_takes_a_second_velocity() {
    let (_root, folder) = qwen_pipeline("sequential");
    let inspection = inspect(&folder).unwrap();
    let velocities = |guidance| {
        let workload = Workload {
            guidance,
            ..workload(DType::BF16)
        };
        let estimate = estimate(&inspection, Role::RolloutWorker, &workload).unwrap();
        estimate.effort.lines[0].flops
    };
    let plain = velocities(Guidance::None);
    assert_eq!(velocities(Guidance::ClassifierFree), 2 * plain);
}

/// Of the published models: how much more a plan is if an edit has three sources.
#[test]
fn every_source_is_planned_for() {
    let (_root, inspection) = qwen_image_edit();
    let plan = |role, sources| {
        let workload = Workload {
            sources,
            ..recipe(512)
        };
        estimate(&inspection, role, &workload).unwrap()
    };
    let tokens = |sources| {
        let line = &plan(Role::RolloutWorker, sources).effort.lines[0];
        let (tokens, _) = line.arithmetic.rsplit_once(" tokens").unwrap();
        tokens.rsplit_once(' ').unwrap().1.parse::<usize>().unwrap()
    };
    // A square of 512 is 32 tokens wide; the text encoder sees it in 384 x 384, which are 14 x 14 tokens.
    assert_eq!(tokens(3) - tokens(1), 2 * (32 * 32 + 14 * 14));
    for role in [Role::RolloutWorker, Role::Learner] {
        let [one, three] = [1, 3].map(|sources| plan(role, sources));
        assert!(three.bytes > one.bytes, "{role}");
        assert!(three.effort.flops > one.effort.flops, "{role}");
    }
}

#[test]
fn an_adapter_as_reference_is_planned_for() {
    let (_root, inspection) = flux_kontext();
    for device in [DeviceName::Cpu, DeviceName::Cuda(0)] {
        let plan = |reference| {
            let workload = Workload {
                device,
                reference,
                ..recipe(1024)
            };
            estimate(&inspection, Role::Learner, &workload).unwrap()
        };
        let [base, adapter] = [Reference::Base, Reference::Adapter].map(plan);
        let lines = |plan: &Estimate, of: &str| {
            let lines = plan.lines.iter().filter(|line| line.what.contains(of));
            lines.map(|line| line.bytes).sum::<u64>()
        };
        let policies =
            lines(&base, "old policy on the device").max(lines(&base, "policy and old") / 2);
        // On a CPU there is a vector of it besides.
        let copies = if device == DeviceName::Cpu { 2 } else { 1 };
        assert_eq!(adapter.bytes - base.bytes, copies * policies, "{device}");
    }
}

#[test]
fn parts_that_the_index_leaves_out_are_looked_for() {
    let (_root, folder) = qwen_pipeline("sequential");
    let index = folder.join("model_index.json");
    fs::write(&index, r#"{"_class_name": "QwenImageEditPlusPipeline"}"#).unwrap();
    assert_eq!(problems(&folder), Vec::<String>::new());
    fs::remove_dir_all(folder.join("text_encoder")).unwrap();
    let problems = problems(&folder);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(
        problems[0].contains("text_encoder: there is no such folder"),
        "{problems:#?}"
    );
    let error = load_error(&folder);
    assert!(error.contains("text_encoder"), "{error}");
}

#[test]
fn sound_parts_of_two_models_do_not_fit() {
    let (_root, folder) = qwen_pipeline("sequential");
    let (_other_root, other) = qwen_pipeline("published_areas");
    fs::remove_dir_all(folder.join("vae")).unwrap();
    copy(&other.join("vae"), &folder.join("vae"));
    let problems = problems(&folder);
    assert_eq!(problems, [load_error(&folder)]);
    assert!(
        problems[0].contains("transformer/config.json: in_channels = 16 is not supported"),
        "{problems:#?}"
    );
}

#[test]
fn an_image_processor_of_another_model_does_not_fit() {
    let (_root, folder) = qwen_pipeline("sequential");
    let file = folder.join("processor/processor_config.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        text.replace("\"patch_size\": 4", "\"patch_size\": 14"),
    )
    .unwrap();
    let problems = problems(&folder);
    assert_eq!(problems, [load_error(&folder)]);
    assert!(
        problems[0].contains(
            "processor: patch_size is 14, but text_encoder/config.json's vision_config has 4"
        ),
        "{problems:#?}"
    );
}

#[test]
fn a_part_of_another_pipeline_is_named() {
    let (_root, folder) = qwen_pipeline("sequential");
    let (_flux_root, flux) = pipeline();
    for part in ["transformer", "vae"] {
        fs::remove_dir_all(folder.join(part)).unwrap();
        copy(&flux.join(part), &folder.join(part));
    }
    let problems = problems(&folder);
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(
        problems[0].contains("_class_name = FluxTransformer2DModel is not supported; supported: QwenImageTransformer2DModel"),
        "{problems:#?}"
    );
    assert!(
        problems[1].contains(
            "_class_name = AutoencoderKL is not supported; supported: AutoencoderKLQwenImage"
        ),
        "{problems:#?}"
    );
}

/// A judge of the parts of a Qwen-Image-Edit pipeline, whose vocabulary has Qwen's chat.
fn chatty_judge() -> (tempfile::TempDir, PathBuf) {
    let (root, folder) = qwen_pipeline("sequential");
    let judge = root.path().join("judge");
    copy(&folder.join("text_encoder"), &judge);
    for file in ["tokenizer.json", "processor_config.json"] {
        fs::copy(folder.join("processor").join(file), judge.join(file)).unwrap();
    }
    (root, judge)
}

#[test]
fn a_judge_that_chats_otherwise_is_warned_of() {
    let (_root, judge) = chatty_judge();
    let warnings = || {
        let inspection = inspect(&judge).unwrap();
        let problems: Vec<&str> = inspection.all_problems().collect();
        assert_eq!(problems, Vec::<&str>::new());
        inspection.warnings
    };
    assert_eq!(warnings(), Vec::<String>::new());
    fs::write(judge.join("chat_template.jinja"), "{{ messages[0].role }}").unwrap();
    let found = warnings();
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].contains("chat_template.jinja: the chat template does not write <|im_start|>"),
        "{found:#?}"
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
    assert!(
        problems[2].ends_with("vae: not a model of class AutoencoderKL: config.json is missing"),
        "{problems:#?}"
    );
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
    assert!(judge.ends_with("not a model of class Qwen2_5_VLForConditionalGeneration: config.json is missing; the folder is a pipeline of class FluxKontextPipeline"), "{judge}");
    let inner = error(&folder.join("transformer"));
    assert!(
        inner.contains("a model of class FluxTransformer2DModel is one part of an editor"),
        "{inner}"
    );
    let adapter = Case::all("peft_folder")[0].path("adapter");
    assert!(error(&adapter).ends_with("; it is an adapter"));
    fs::write(
        root.path().join("config.json"),
        r#"{"architectures": ["LlamaForCausalLM"]}"#,
    )
    .unwrap();
    assert!(error(root.path()).ends_with("a model of class \"LlamaForCausalLM\" is not supported as a judge; supported: Qwen2_5_VLForConditionalGeneration"));
}

const GIB: u64 = 1 << 30;

/// A folder with nothing but the configurations of a published pipeline; plans read no more.
fn published(class: &str, parts: &[(&str, &str)]) -> (tempfile::TempDir, Inspection) {
    let tables = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/parity/tables");
    let root = tempfile::tempdir().unwrap();
    for (part, table) in parts {
        let text = fs::read_to_string(tables.join(format!("{table}.json"))).unwrap();
        let table: serde_json::Value = serde_json::from_str(&text).unwrap();
        fs::create_dir_all(root.path().join(part)).unwrap();
        fs::write(
            root.path().join(part).join("config.json"),
            table["config"].to_string(),
        )
        .unwrap();
    }
    let inspection = Inspection {
        folder: root.path().to_owned(),
        kind: FolderKind::Editor,
        class: class.to_owned(),
        components: Vec::new(),
        problems: Vec::new(),
        warnings: Vec::new(),
    };
    (root, inspection)
}

fn flux_kontext() -> (tempfile::TempDir, Inspection) {
    let parts = [
        ("transformer", "flux1-kontext-dev_transformer"),
        ("vae", "flux1-kontext-dev_vae"),
        ("text_encoder", "flux1-kontext-dev_text_encoder"),
        ("text_encoder_2", "flux1-kontext-dev_text_encoder_2"),
    ];
    published("FluxKontextPipeline", &parts)
}

fn qwen_image_edit() -> (tempfile::TempDir, Inspection) {
    let parts = [
        ("transformer", "qwen-image-edit-2509_transformer"),
        ("vae", "qwen-image-edit-2509_vae"),
        ("text_encoder", "qwen2.5-vl-7b-instruct"),
    ];
    let (root, inspection) = published("QwenImageEditPlusPipeline", &parts);
    let (_small_root, small) = qwen_pipeline("sequential");
    let processor = root.path().join("processor");
    copy(&small.join("processor"), &processor);
    let file = processor.join("processor_config.json");
    let text = fs::read_to_string(&file).unwrap();
    let published = [
        ("\"patch_size\": 4", "\"patch_size\": 14"),
        ("\"longest_edge\": 4096", "\"longest_edge\": 12845056"),
        ("\"shortest_edge\": 256", "\"shortest_edge\": 3136"),
    ];
    let text = published
        .iter()
        .fold(text, |text, (small, large)| text.replace(small, large));
    fs::write(file, text).unwrap();
    (root, inspection)
}

/// The published recipe on a card.
fn recipe(side: usize) -> Workload {
    Workload {
        device: DeviceName::Cuda(0),
        size: ImageSize::square(side),
        group_size: 12,
        max_sequence_length: if side > 512 { 512 } else { 128 },
        micro_batch_size: 3,
        lora: LoraConfig {
            rank: 32,
            alpha: 64.0,
            target_modules: ["to_q", "to_k", "to_v", "to_out.0"]
                .map(str::to_owned)
                .to_vec(),
        },
        ..workload(DType::BF16)
    }
}

#[test]
fn published_models_sample_and_train_within_an_80_gb_card() {
    for (_root, inspection) in [flux_kontext(), qwen_image_edit()] {
        for side in [512, 1024] {
            for role in [Role::RolloutWorker, Role::Learner] {
                let plan = estimate(&inspection, role, &recipe(side)).unwrap();
                let gib = plan.bytes as f64 / GIB as f64;
                // What the driver of an H100 of 80 GB says it has.
                assert!(
                    plan.bytes < 79 * GIB,
                    "{} {role} at {side}: {gib:.1} GiB",
                    inspection.class
                );
            }
        }
    }
}

#[test]
fn a_card_holds_no_scores_and_nothing_of_the_host() {
    let (_root, inspection) = flux_kontext();
    let plan = |workload: &Workload| estimate(&inspection, Role::Learner, workload).unwrap();
    let names = |workload: &Workload| -> Vec<String> {
        plan(workload)
            .lines
            .into_iter()
            .map(|line| line.what)
            .collect()
    };
    // At 512, a learner is fuller while it asks the frozen policies.
    let asked = names(&recipe(512)).join(", ");
    assert!(asked.contains("frozen policies"), "{asked}");
    let card = names(&recipe(1024)).join(", ");
    assert!(
        card.contains("the driver's context") && card.contains("block of queries"),
        "{card}"
    );
    assert!(!card.contains("Adam") && !card.contains("blob"), "{card}");
    let cpu = Workload {
        device: DeviceName::Cpu,
        ..recipe(512)
    };
    let cpu = names(&cpu).join(", ");
    assert!(cpu.contains("Adam") && !cpu.contains("the driver"), "{cpu}");
    // Four times the tokens are sixteen times the scores; what there is of them grows with the tokens alone.
    let [small, large] = [1024, 2048].map(|side| {
        let lines = plan(&recipe(side)).lines;
        let line = lines
            .iter()
            .find(|line| line.what.contains("block of queries"));
        line.map(|line| line.bytes).unwrap()
    });
    assert!(large <= 2 * small, "{small} {large}");
}
