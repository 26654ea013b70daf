//! One DiffusionNFT iteration of a small editor, and its parts.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use burn::tensor::Device;
use criterion::{Criterion, criterion_group, criterion_main};
use retouch_learner::schedule::Update;
use retouch_learner::shards::Local;
use retouch_learner::state::LearnerState;
use retouch_learner::step::{
    self, GroupData, SampledBy, SealedGroup, SealedIteration, train_iteration,
};
use retouch_models::autoencoder_kl::AutoencoderKlConfig;
use retouch_models::editor::{ConditionShape, Editor, ImageSize, Parts};
use retouch_models::exchange;
use retouch_models::flux::{FluxTransformer, FluxTransformerConfig};
use retouch_models::init::Init;
use retouch_models::lora::LoraAdapter;
use retouch_models::noise;
use retouch_models::scheduler::FlowMatchScheduler;
use retouch_models::weights::{Pretrained, write_config};
use retouch_proto::config::{Checkpointing, LearnerConfig};
use retouch_proto::task::TrainMetrics;
use retouch_proto::{GroupId, Iteration, RunConfig};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const GROUP_SIZE: usize = 12;
const TEXT_TOKENS: usize = 16;

/// About 3 M parameters; an edit of 64 x 64 pixels is 64 + 64 image tokens.
fn editor(folder: &Path) -> Editor {
    let device = Device::flex();
    let config = FluxTransformerConfig {
        in_channels: 32,
        num_layers: 3,
        num_single_layers: 4,
        attention_head_dim: 32,
        num_attention_heads: 4,
        joint_attention_dim: 64,
        pooled_projection_dim: 64,
        guidance_embeds: true,
        axes_dims_rope: vec![8, 12, 12],
        ..FluxTransformerConfig::default()
    };
    let transformer = FluxTransformer::init(&config, &Init::new(1, &device));
    transformer.save(&folder.join("transformer")).unwrap();
    FlowMatchScheduler::default()
        .save(&folder.join("scheduler"))
        .unwrap();
    std::fs::create_dir_all(folder.join("vae")).unwrap();
    let vae = AutoencoderKlConfig {
        latent_channels: 8,
        ..AutoencoderKlConfig::with_levels(vec![16, 32, 32])
    };
    write_config(&folder.join("vae/config.json"), &vae).unwrap();
    let index = serde_json::json!({"_class_name": "FluxKontextPipeline"});
    write_config(&folder.join("model_index.json"), &index).unwrap();
    Editor::load(folder, &device, Parts::Transformer).unwrap()
}

fn group(editor: &Editor, index: u32) -> SealedGroup {
    let device = Device::flex();
    let size = ImageSize::square(64);
    let [tokens, channels] = editor.latent_shape(size);
    let seed = u64::from(index) * 10;
    let shape = ConditionShape {
        size,
        sources: 1,
        max_sequence_length: TEXT_TOKENS,
    };
    let advantages = noise::normal_values(seed + 4, GROUP_SIZE);
    SealedGroup {
        group: GroupId {
            iteration: Iteration(1),
            index,
        },
        advantages: advantages.into_iter().map(f64::from).collect(),
        sampled_by: SampledBy::Old,
        data: Some(GroupData {
            condition: editor.random_condition(shape, seed + 1),
            x0: noise::normal(seed + 5, [GROUP_SIZE, tokens, channels], &device),
        }),
    }
}

fn config(micro_batch_size: usize, checkpointing: Checkpointing) -> RunConfig {
    let mut run = RunConfig {
        seed: 1,
        ..RunConfig::default()
    };
    run.learner.gradient_shards = 2;
    run.learner.micro_batch_size = micro_batch_size as u32;
    run.learner.activation_checkpointing = checkpointing;
    run
}

/// A state whose old policy is not the trained one, as after the first iterations.
fn state(editor: &Editor, config: &RunConfig) -> LearnerState {
    let adapter = LoraAdapter::init(
        &config.lora.adapter,
        editor.projections(),
        1,
        &Device::flex(),
    );
    let mut state = LearnerState::initial(adapter.to_flat());
    state.old.iter_mut().for_each(|value| *value *= 0.99);
    state
}

/// Two groups of 12 at five timesteps: 120 forward passes of each policy.
fn iterations(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let editor = editor(folder.path());
    let groups = [group(&editor, 0), group(&editor, 1)];
    let mut bench = criterion.benchmark_group("nft_step/24_samples");
    bench.sample_size(10);
    use Checkpointing::{Block, None};
    for (micro_batch_size, checkpointing) in
        [(6, None), (12, None), (24, None), (12, Block), (24, Block)]
    {
        let name = format!("micro_batch_{micro_batch_size}_checkpointing_{checkpointing}");
        let config = config(micro_batch_size, checkpointing);
        let state = state(&editor, &config);
        let iteration = SealedIteration {
            editor: &editor,
            config: &config,
            number: Iteration(1),
            reference: Option::None,
            groups: &groups,
        };
        print_stages(&name, iteration, &state);
        let mut go_on = |_| ControlFlow::Continue(());
        bench.bench_function(name, |b| {
            b.iter(|| train_iteration(iteration, &state, &mut Local, &mut go_on).unwrap());
        });
    }
    bench.finish();
}

/// Where the time of one iteration and of what is published of it goes. No blob is waited for and no rank.
fn print_stages(name: &str, iteration: SealedIteration<'_>, state: &LearnerState) {
    let mut go_on = |_| ControlFlow::Continue(());
    let output = train_iteration(iteration, state, &mut Local, &mut go_on).unwrap();
    let begin = Instant::now();
    black_box((
        output.state.to_bytes(),
        exchange::adapter_to_bytes(&output.state.old),
    ));
    let metrics = TrainMetrics {
        publish_s: begin.elapsed().as_secs_f64(),
        ..output.metrics.into()
    };
    let stages = metrics.stages().into_iter();
    let stages: Vec<_> = stages.map(|(stage, s)| format!("{stage} {s:.3}")).collect();
    println!("{name}: seconds: {}", stages.join(", "));
}

/// Clipping, AdamW, EMA and old policy on an adapter of 32 million values.
fn update(criterion: &mut Criterion) {
    let n = 1 << 25;
    let mut state = LearnerState::initial(vec![0.1; n]);
    let mut bench = criterion.benchmark_group("update");
    bench.sample_size(10);
    bench.bench_function("32m_parameters", |b| {
        b.iter(|| {
            let now = Update::at(&LearnerConfig::default(), state.step + 1);
            black_box(step::update(&mut state, vec![1e-3; n], &now))
        });
    });
    bench.finish();
}

criterion_group!(benches, iterations, update);
criterion_main!(benches);
