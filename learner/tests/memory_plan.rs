//! The memory that a learner's plan promises against the most that a process has while it walks an iteration.
//!
//! The small model takes seconds. The one of 300 million parameters takes minutes and 3 GB:
//!
//!     cargo test --release -p retouch-learner --test memory_plan -- --ignored --nocapture

#![cfg(target_os = "linux")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use retouch_learner::dry_run::dry_run;
use retouch_learner::workload::workload;
use retouch_models::editor::{Editor, Encoders, FluxKontext, FluxKontextEncoders};
use retouch_models::flux::{FluxTransformer, FluxTransformerConfig};
use retouch_models::init::Init;
use retouch_models::inspect::{Estimate, Role, estimate, inspect};
use retouch_models::scheduler::FlowMatchScheduler;
use retouch_models::weights::{Pretrained, PretrainedConfig};
use retouch_proto::RunConfig;
use retouch_proto::config::{Checkpointing, Dtype, Preset, load, preset};
use serde::{Deserialize, Serialize};

/// Names the run file to a child: this program, which then only walks an iteration.
const CHILD: &str = "RETOUCH_MEMORY_PLAN_RUN";

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What a child tells.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    peak_resident_bytes: u64,
    iteration_s: f64,
    stages_s: Vec<(String, f64)>,
}

/// Not a test: the work of a child.
#[test]
fn child() {
    let Some(file) = std::env::var_os(CHILD) else {
        return;
    };
    let run = load(Some(Path::new(&file)), [], &[]).unwrap();
    let walked = dry_run(&run, &mut |_| ControlFlow::Continue(())).unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.unwrap().trim().trim_end_matches(" kB").parse::<u64>();
    let stages = walked.stages_s.into_iter();
    let told = Told {
        peak_resident_bytes: 1024 * kib.unwrap(),
        iteration_s: walked.iteration_s,
        stages_s: stages.map(|(name, s)| (name.to_owned(), s)).collect(),
    };
    let told = serde_json::to_string(&told).unwrap();
    std::fs::write(Path::new(&file).with_extension("json"), told).unwrap();
}

/// Walks an iteration of a run in a process of its own.
fn walk(run: &RunConfig) -> Told {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    std::fs::write(&file, run.to_toml()).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--test-threads", "1"]);
    let output = command.env(CHILD, &file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let told = std::fs::read(file.with_extension("json")).unwrap();
    serde_json::from_slice(&told).unwrap()
}

/// The plan of a run's learner, as `retouch model check --role learner` makes it.
fn plan(run: &RunConfig) -> Estimate {
    let inspection = inspect(Path::new(&run.model.path)).unwrap();
    estimate(&inspection, Role::Learner, &workload(run, Role::Learner)).unwrap()
}

/// Planned and measured, with and without checkpointing, in MiB; printed with the arithmetic.
fn both(name: &str, mut run: RunConfig) -> [[f64; 2]; 2] {
    use Checkpointing::{Block, None};
    [None, Block].map(|checkpointing| {
        run.learner.activation_checkpointing = checkpointing;
        let (plan, told) = (plan(&run), walk(&run));
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (planned, measured) = (mib(plan.bytes), mib(told.peak_resident_bytes));
        println!("{name}, checkpointing {checkpointing}: planned {planned:.1} MiB, measured {measured:.1} MiB");
        for line in &plan.lines {
            println!("  {:9.1} MiB  {}: {}", mib(line.bytes), line.what, line.arithmetic);
        }
        println!("  {:.2} s: {:.2?}", told.iteration_s, told.stages_s);
        [planned, measured]
    })
}

#[test]
fn the_small_model_takes_what_was_planned() {
    let mut run = preset(Preset::Tiny);
    run.model.path = repository()
        .join("assets/tiny/editor")
        .display()
        .to_string();
    run.rollout.groups_per_iteration = 2;
    for [planned, measured] in both("assets/tiny", run) {
        assert!((planned - measured).abs() < 64.0, "{planned} {measured}");
    }
}

/// Stores parameters as bf16.
struct Narrow;

impl ModuleMapper for Narrow {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor.detach().cast(FloatDType::BF16))
    }
}

/// A pipeline with the encoders of a golden case and a transformer of 302 million random parameters.
fn large_pipeline(folder: &Path) {
    let cases = repository().join("tools/parity/cases");
    let small = cases.join("kontext_pipeline__dpm2_truncated_prompt/pipeline");
    let device = Device::flex();
    let encoders = FluxKontextEncoders::load(&small, &device, DType::F32).unwrap();
    let scheduler = FlowMatchScheduler::load(&small.join("scheduler")).unwrap();
    let config = FluxTransformerConfig {
        num_layers: 3,
        num_single_layers: 12,
        attention_head_dim: 64,
        num_attention_heads: 16,
        axes_dims_rope: vec![8, 28, 28],
        ..FluxTransformerConfig::load(&small.join("transformer")).unwrap()
    };
    let transformer = FluxTransformer::init(&config, &Init::new(1, &device)).map(&mut Narrow);
    println!("{} parameters", transformer.num_params());
    let base = FluxKontext::new(transformer, encoders);
    Editor::new(base, scheduler, &device).save(folder).unwrap();
}

#[test]
#[ignore = "minutes and 3 GB"]
fn a_model_of_300_million_parameters_takes_what_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    large_pipeline(folder.path());
    let mut run = preset(Preset::Tiny);
    run.model.dtype = Dtype::Bf16;
    run.model.path = folder.path().display().to_string();
    [run.model.height, run.model.width] = [32, 64];
    run.model.max_sequence_length = 64;
    run.rollout.groups_per_iteration = 1;
    run.rollout.group_size = 4;
    run.rollout.num_inference_steps = 2;
    run.learner.ranks = 1;
    run.learner.gradient_shards = 2;
    run.learner.micro_batch_size = 2;
    run.learner.timestep_fraction = 0.5;
    for [planned, measured] in both("300 M parameters", run) {
        let off = measured / planned - 1.0;
        assert!(off.abs() < 0.1, "{planned} {measured}");
    }
}
