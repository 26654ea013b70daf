//! COST.md says what this crate counts for the published models at full size.

use std::fs;
use std::path::Path;

use burn::tensor::DType;
use retouch_models::editor::ImageSize;
use retouch_models::inspect::{Effort, Guidance, Inspection, Role, Workload, estimate, inspect};
use retouch_models::lora::{Checkpointing, LoraConfig};
use serde_json::{Value, json};

/// An H100's dense bf16 products and its memory, per second.
const FLOPS_PER_S: f64 = 989e12;
const BYTES_PER_S: f64 = 3.35e12;

/// A row of the document.
struct Row {
    what: &'static str,
    folder: Folder,
    role: Role,
    workload: Workload,
}

#[derive(Clone, Copy)]
enum Folder {
    Flux,
    Qwen,
    Judge(&'static str),
}

fn config(table: &str) -> Value {
    let tables = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/parity/tables");
    let text = fs::read_to_string(tables.join(format!("{table}.json"))).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["config"].take()
}

fn write(path: &Path, value: &Value) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, value.to_string()).unwrap();
}

/// How published Qwen2.5-VL folders cut images.
fn processor() -> Value {
    json!({
        "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 3136, "max_pixels": 12_845_056,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    })
}

impl Folder {
    /// Its configurations at full size, without weights.
    fn write(self, folder: &Path) {
        let part = |name: &str, table: &str| {
            write(&folder.join(name).join("config.json"), &config(table));
        };
        match self {
            Self::Flux => {
                write(
                    &folder.join("model_index.json"),
                    &json!({"_class_name": "FluxKontextPipeline"}),
                );
                for name in ["transformer", "vae", "text_encoder", "text_encoder_2"] {
                    part(name, &format!("flux1-kontext-dev_{name}"));
                }
            }
            Self::Qwen => {
                let class = json!({"_class_name": "QwenImageEditPlusPipeline"});
                write(&folder.join("model_index.json"), &class);
                part("transformer", "qwen-image-edit-2509_transformer");
                part("vae", "qwen-image-edit-2509_vae");
                part("text_encoder", "qwen2.5-vl-7b-instruct");
                write(
                    &folder.join("processor/preprocessor_config.json"),
                    &processor(),
                );
            }
            Self::Judge(table) => {
                write(&folder.join("config.json"), &config(table));
                write(&folder.join("preprocessor_config.json"), &processor());
            }
        }
    }

    fn inspect(self) -> (tempfile::TempDir, Inspection) {
        let folder = tempfile::tempdir().unwrap();
        self.write(folder.path());
        let inspection = inspect(folder.path()).unwrap();
        (folder, inspection)
    }
}

/// What a run does by default, on the published models.
fn training() -> Workload {
    let targets = [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
    ];
    Workload {
        dtype: DType::BF16,
        size: ImageSize::square(512),
        group_size: 12,
        max_sequence_length: 128,
        num_inference_steps: 6,
        guidance: Guidance::None,
        checkpointing: Checkpointing::Block,
        micro_batch_size: 3,
        lanes: 1,
        shards: 8,
        lora: LoraConfig {
            rank: 32,
            alpha: 64.0,
            target_modules: targets.map(str::to_owned).to_vec(),
        },
    }
}

/// How benchmarks sample.
fn benchmark(guidance: Guidance) -> Workload {
    Workload {
        size: ImageSize::square(1024),
        group_size: 1,
        num_inference_steps: 28,
        guidance,
        ..training()
    }
}

fn rows() -> Vec<Row> {
    let row = |what, folder, role, workload| Row {
        what,
        folder,
        role,
        workload,
    };
    let (rollout, learner, reward) = (Role::RolloutWorker, Role::Learner, Role::RewardWorker);
    vec![
        row(
            "FLUX.1-Kontext, image of a group",
            Folder::Flux,
            rollout,
            training(),
        ),
        row(
            "FLUX.1-Kontext, training pair",
            Folder::Flux,
            learner,
            training(),
        ),
        row(
            "FLUX.1-Kontext, benchmark image",
            Folder::Flux,
            rollout,
            benchmark(Guidance::None),
        ),
        row(
            "Qwen-Image-Edit-2509, image of a group",
            Folder::Qwen,
            rollout,
            training(),
        ),
        row(
            "Qwen-Image-Edit-2509, training pair",
            Folder::Qwen,
            learner,
            training(),
        ),
        row(
            "Qwen-Image-Edit-2509, benchmark image",
            Folder::Qwen,
            rollout,
            benchmark(Guidance::ClassifierFree),
        ),
        row(
            "Qwen2.5-VL-7B, judged edit",
            Folder::Judge("qwen2.5-vl-7b-instruct"),
            reward,
            training(),
        ),
        row(
            "Qwen2.5-VL-32B, judged edit",
            Folder::Judge("qwen2.5-vl-32b-instruct"),
            reward,
            training(),
        ),
    ]
}

fn effort(row: &Row) -> Effort {
    let (_folder, inspection) = row.folder.inspect();
    estimate(&inspection, row.role, &row.workload)
        .unwrap()
        .effort
}

/// Seconds, as long as the slower of arithmetic and memory takes.
fn seconds(effort: &Effort, share: f64) -> f64 {
    let arithmetic = effort.flops as f64 / FLOPS_PER_S / share;
    arithmetic.max(effort.bytes as f64 / BYTES_PER_S)
}

fn line(row: &Row) -> String {
    let effort = effort(row);
    format!(
        "| {} | {:.1} | {:.1} | {:.3} | {:.3} |",
        row.what,
        effort.flops as f64 / 1e12,
        effort.bytes as f64 / 1e9,
        seconds(&effort, 1.0),
        seconds(&effort, 0.4)
    )
}

#[test]
fn the_document_has_the_numbers_that_are_counted() {
    let document = include_str!("../COST.md");
    let lines: Vec<String> = rows().iter().map(line).collect();
    for line in &lines {
        assert!(
            document.contains(line.as_str()),
            "COST.md should have these lines:\n{}",
            lines.join("\n")
        );
    }
}

/// Multiply-adds of double-stream blocks by hand: 12 D^2 with weights a token, 2 N^2 D of attention a block.
#[test]
fn transformers_do_what_their_sizes_say() {
    let dim: u64 = 3072;
    let velocity = |folder, steps: u64| {
        let workload = Workload {
            dtype: DType::F32,
            num_inference_steps: steps as usize,
            ..training()
        };
        let (_folder, inspection) = Folder::inspect(folder);
        let estimate = estimate(&inspection, Role::RolloutWorker, &workload).unwrap();
        estimate.effort.lines[0].flops / steps
    };
    // 32 x 32 tokens of 16 x 16 pixels each, of result and source.
    let (image, text) = (2 * 32 * 32, 128);
    let all = image + text;
    let modulation = 19 * 12 * dim * dim + 38 * 3 * dim * dim + 2 * dim * dim;
    let time = 2 * (256 * dim + dim * dim) + 768 * dim + dim * dim;
    let ends = 2 * 64 * dim * image + 4096 * dim * text;
    let blocks = 57 * (12 * dim * dim * all + 2 * all * all * dim);
    assert_eq!(
        velocity(Folder::Flux, 3),
        2 * (blocks + modulation + time + ends)
    );

    // The source is shown to the text encoder as 392 x 392 pixels: 14 x 14 tokens.
    let text = 14 * 14 + 128;
    let all = image + text;
    let modulation = 60 * 12 * dim * dim + 2 * dim * dim;
    let time = 256 * dim + dim * dim;
    let ends = 2 * 64 * dim * image + 3584 * dim * text;
    let blocks = 60 * (12 * dim * dim * all + 2 * all * all * dim);
    assert_eq!(
        velocity(Folder::Qwen, 3),
        2 * (blocks + modulation + time + ends)
    );
}
