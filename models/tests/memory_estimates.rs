//! What `inspect::estimate` promises against what is allocated. Alone in its process, with an allocator that counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use image::RgbImage;
use retouch_models::editor::{
    Condition, EditRequest, Editor, Encoders, FluxKontext, FluxKontextEncoders, ImageSize, Parts,
    QwenImageEdit, QwenImageEditEncoders, SampleOptions, SourceSize,
};
use retouch_models::flux::{FluxTransformer, FluxTransformerConfig};
use retouch_models::init::Init;
use retouch_models::inspect::{Estimate, Guidance, Reference, Role, Workload, estimate, inspect};
use retouch_models::judge::{Judge, JudgeRequest, Template};
use retouch_models::lora::{Checkpointing, LoraAdapter, LoraConfig, Trained, flat_len};
use retouch_models::noise;
use retouch_models::qwen_image::{QwenImageTransformer, QwenImageTransformerConfig};
use retouch_models::scheduler::FlowMatchScheduler;
use retouch_models::solver::Solver;
use retouch_models::weights::{Pretrained, PretrainedConfig};
use retouch_settings::DeviceName;

/// The system's allocator, with the bytes that are out now and that were at most.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `work` had allocated beyond what was there before.
fn peak(work: impl FnOnce()) -> u64 {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    work();
    (MOST.load(Ordering::Relaxed) - before) as u64
}

const SIZE: ImageSize = ImageSize {
    height: 64,
    width: 96,
};

/// The pipeline of a golden case.
fn small(case: &str) -> PathBuf {
    let cases = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tools/parity/cases");
    cases.join(case).join("pipeline")
}

/// A small FLUX.1-Kontext with a transformer of the given heads.
fn flux(folder: &Path, heads: usize, axes: [usize; 3]) {
    let small = small("kontext_pipeline__dpm2_truncated_prompt");
    let device = Device::flex();
    let encoders = FluxKontextEncoders::load(&small, &device, DType::F32).unwrap();
    let scheduler = FlowMatchScheduler::load(&small.join("scheduler")).unwrap();
    let config = FluxTransformerConfig {
        num_layers: 2,
        num_single_layers: 4,
        attention_head_dim: axes.iter().sum(),
        num_attention_heads: heads,
        axes_dims_rope: axes.to_vec(),
        ..FluxTransformerConfig::load(&small.join("transformer")).unwrap()
    };
    let transformer = FluxTransformer::init(&config, &Init::new(1, &device));
    let base = FluxKontext::new(transformer, encoders);
    let editor = Editor::new(base, scheduler, &device);
    editor.save(folder).unwrap();
}

/// A small Qwen-Image-Edit likewise.
fn qwen(folder: &Path, heads: usize, axes: [usize; 3]) {
    let small = small("qwen_image_edit_pipeline__sequential_positions");
    let device = Device::flex();
    let encoders = QwenImageEditEncoders::load(&small, &device, DType::F32).unwrap();
    let scheduler = FlowMatchScheduler::load(&small.join("scheduler")).unwrap();
    let config = QwenImageTransformerConfig {
        // Of the text, the first and the last block keep less than the others.
        num_layers: 16,
        attention_head_dim: axes.iter().sum(),
        num_attention_heads: heads,
        axes_dims_rope: axes,
        ..QwenImageTransformerConfig::load(&small.join("transformer")).unwrap()
    };
    let transformer = QwenImageTransformer::init(&config, &Init::new(1, &device));
    let base = QwenImageEdit::new(transformer, encoders);
    let editor = Editor::new(base, scheduler, &device);
    editor.save(folder).unwrap();
}

fn lora() -> LoraConfig {
    LoraConfig {
        rank: 4,
        alpha: 8.0,
        target_modules: ["to_q", "to_k", "to_v", "to_out.0"]
            .map(str::to_owned)
            .to_vec(),
    }
}

fn workload(dtype: DType) -> Workload {
    Workload {
        device: DeviceName::Cpu,
        dtype,
        size: SIZE,
        sources: 1,
        group_size: 4,
        max_sequence_length: 12,
        num_inference_steps: 2,
        guidance: Guidance::None,
        checkpointing: Checkpointing::None,
        micro_batch_size: 3,
        lanes: 1,
        shards: 1,
        lora: lora(),
        reference: Reference::Base,
    }
}

fn encode(editor: &Editor, sources: usize) -> Condition {
    let source = RgbImage::new(SIZE.width as u32, SIZE.height as u32);
    let request = EditRequest {
        prompt: "make it red",
        negative_prompt: None,
        sources: &vec![source; sources],
        source_size: SourceSize::usual(sources),
        size: SIZE,
        max_sequence_length: 12,
    };
    editor.encode_request(&request).unwrap()
}

fn adapter(editor: &Editor, device: &Device) -> LoraAdapter {
    let flat = noise::normal_values(1, flat_len(&lora(), editor.projections()));
    LoraAdapter::from_flat(&lora(), editor.projections(), &flat, device)
}

/// Loads, encodes, samples a group and decodes it.
fn roll_out(folder: &Path, workload: &Workload) {
    let device = Device::flex();
    let editor = Editor::load_as(folder, &device, Parts::All, workload.dtype).unwrap();
    let adapters = [adapter(&editor, &device), adapter(&editor, &device)];
    let condition = encode(&editor, workload.sources);
    let [tokens, channels] = editor.latent_shape(SIZE);
    let noise = noise::normal(1, [4, tokens, channels], &device);
    let options = SampleOptions {
        num_inference_steps: 2,
        solver: Solver::Dpm2,
        guidance_scale: 1.0,
        true_cfg_scale: 1.0,
    };
    let x0 = editor
        .sample(&condition, noise, &options, Some(&adapters[1]))
        .unwrap();
    assert_eq!(editor.decode(x0, &condition).unwrap().len(), 4);
}

/// The lines of a learner's estimate that [`learn`] makes.
const LEARNED: [&str; 8] = [
    "transformer weights",
    "policy as leaves of graphs",
    "graphs of the double-stream blocks",
    "graphs of the single-stream blocks",
    "inputs of the blocks",
    "graph of one block",
    "gradients on their way",
    "a weight as f32",
];

/// Loads, and takes a gradient on a micro batch.
fn learn(folder: &Path, workload: &Workload) {
    let device = Device::flex();
    let encoders = Editor::load(folder, &device, Parts::All).unwrap();
    let condition = encode(&encoders, workload.sources);
    drop(encoders);
    MOST.store(NOW.load(Ordering::Relaxed), Ordering::Relaxed);
    let editor = Editor::load_as(folder, &device, Parts::Transformer, workload.dtype).unwrap();
    let adapter = adapter(&editor, &device.clone().autodiff());
    let [tokens, channels] = editor.latent_shape(SIZE);
    let x = noise::normal(1, [3, tokens, channels], &device);
    let t = Tensor::from_floats([0.9, 0.5, 0.1], &device);
    let prepared = editor.prepare(&[&condition], 1.0);
    let trained = Trained {
        adapter: &adapter,
        checkpointing: workload.checkpointing,
    };
    let tracked = editor.tracked_velocity_of(x, t, &prepared, trained);
    let gradients = tracked.output().square().mean().backward();
    assert_eq!(
        tracked.gradient(&gradients).into_flat().len(),
        adapter.num_params()
    );
}

fn print(name: &str, estimate: &Estimate, peak: u64) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (promised, taken) = (mib(estimate.bytes), mib(peak));
    println!("{name}: estimated {promised:.2} MiB, allocated {taken:.2} MiB");
    for line in &estimate.lines {
        let bytes = mib(line.bytes);
        println!("  {bytes:8.2} MiB  {}: {}", line.what, line.arithmetic);
    }
}

/// Scores a group with the judge of the quickstart.
fn judge(folder: &Path, workload: &Workload) {
    let judge = Judge::load_as(folder, &Device::flex(), workload.dtype).unwrap();
    let template = Template::load(&folder.join("template.txt")).unwrap();
    let image = || RgbImage::new(SIZE.width as u32, SIZE.height as u32);
    let request = JudgeRequest {
        sources: &vec![image(); workload.sources],
        edits: &[image(), image(), image(), image()],
        prompt: "make the circle red",
        requirement: "keep the rest",
        template: Some(&template),
    };
    assert_eq!(judge.score(&request).unwrap().len(), 4);
}

fn name(workload: &Workload) -> String {
    let Workload {
        dtype,
        checkpointing,
        sources,
        ..
    } = workload;
    format!("{dtype:?}, {checkpointing:?}, sources {sources}")
}

/// An estimate and what was allocated in fact.
fn measure(
    folder: &Path,
    role: Role,
    workload: &Workload,
    work: fn(&Path, &Workload),
) -> (u64, u64) {
    let inspection = inspect(folder).unwrap();
    let estimate = estimate(&inspection, role, workload).unwrap();
    let peak = peak(|| work(folder, workload));
    print(&format!("{role}, {}", name(workload)), &estimate, peak);
    (estimate.bytes, peak)
}

/// The same of a gradient; what a learner's process holds besides is measured in a process of its own
/// (`cli/tests/memory_plan.rs`).
fn measure_gradient(folder: &Path, workload: &Workload) -> (u64, u64) {
    let inspection = inspect(folder).unwrap();
    let mut estimate = estimate(&inspection, Role::Learner, workload).unwrap();
    let lines = &mut estimate.lines;
    lines.retain(|line| LEARNED.contains(&line.what.as_str()));
    estimate.bytes = lines.iter().map(|line| line.bytes).sum();
    let peak = peak(|| learn(folder, workload));
    print(&format!("gradient, {}", name(workload)), &estimate, peak);
    (estimate.bytes, peak)
}

/// One test: what another one allocates meanwhile would count.
#[test]
fn roles_take_no_more_and_not_much_less_than_estimated() {
    let folder = tempfile::tempdir().unwrap();
    let mut measured = Vec::new();
    // Sources, and tokens of text beside them: the one pads its text, to the other hardly more than a letter is a token.
    let of_flux = &[(DType::F32, 1, 12), (DType::BF16, 1, 12)][..];
    let of_qwen = &[
        (DType::F32, 1, 182),
        (DType::BF16, 1, 182),
        (DType::F32, 3, 198),
    ];
    for (name, make, cases) in [
        ("flux", flux as fn(&Path, usize, [usize; 3]), of_flux),
        ("qwen", qwen, of_qwen),
    ] {
        println!("{name}");
        let [wide, narrow] = ["wide", "narrow"].map(|kind| folder.path().join(name).join(kind));
        // In the one, tokens are what takes memory, in the other, pixels.
        make(&wide, 4, [16, 24, 24]);
        make(&narrow, 1, [2, 2, 4]);
        for &(dtype, sources, text) in cases {
            let of = |checkpointing| Workload {
                sources,
                checkpointing,
                max_sequence_length: text,
                ..workload(dtype)
            };
            let plain = of(Checkpointing::None);
            measured.push(measure(&wide, Role::RolloutWorker, &plain, roll_out));
            for workload in [plain, of(Checkpointing::Block)] {
                let (estimated, peak) = measure_gradient(&wide, &workload);
                let off = peak as f64 / estimated as f64 - 1.0;
                assert!(off.abs() < 0.12, "{}: {off:+.3}", self::name(&workload));
            }
        }
        let plain = workload(DType::F32);
        measured.push(measure(&narrow, Role::RolloutWorker, &plain, roll_out));
    }
    // A template of a published judge is longer than this one's, so that only the upper bound holds.
    let judges = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny/judge");
    let scored = [(DType::F32, 1), (DType::BF16, 1), (DType::F32, 3)].map(|(dtype, sources)| {
        let workload = Workload {
            sources,
            ..workload(dtype)
        };
        measure(&judges, Role::RewardWorker, &workload, judge)
    });
    for (estimated, peak) in measured.iter().chain(&scored) {
        assert!(
            peak <= estimated,
            "{peak} B allocated, {estimated} estimated"
        );
    }
    for (estimated, peak) in measured {
        assert!(
            2 * peak >= estimated,
            "{peak} B allocated, {estimated} estimated"
        );
    }
}
