//! The FLUX transformer at a size that two cores train in minutes: a policy's forward as sampling
//! has it, forward and backward as training has it, and a solver's own arithmetic.

use std::hint::black_box;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use retouch_models::dit::Transformer;
use retouch_models::flux::{FluxCondition, FluxContext, FluxTransformer, FluxTransformerConfig};
use retouch_models::init::Init;
use retouch_models::lora::{LoraAdapter, LoraConfig};
use retouch_models::noise;
use retouch_models::solver::{self, Solver};
use retouch_models::weights::Pretrained;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SAMPLES: usize = 12;
const TOKENS: usize = 64;
const TEXT: usize = 32;

fn config() -> FluxTransformerConfig {
    FluxTransformerConfig {
        in_channels: 16,
        num_layers: 2,
        num_single_layers: 4,
        attention_head_dim: 48,
        num_attention_heads: 4,
        joint_attention_dim: 64,
        pooled_projection_dim: 64,
        guidance_embeds: true,
        axes_dims_rope: vec![8, 20, 20],
        ..Default::default()
    }
}

struct Bench {
    model: FluxTransformer,
    context: FluxContext,
    x: Tensor<3>,
    t: Tensor<1>,
}

impl Bench {
    fn new() -> Self {
        let device = Device::flex();
        let model = FluxTransformer::init(&config(), &Init::new(1, &device)).no_grad();
        let context = model.prepare(FluxCondition {
            encoder_hidden_states: noise::normal(1, [1, TEXT, 64], &device),
            pooled_projections: noise::normal(2, [1, 64], &device),
            guidance: Some(Tensor::ones([1], &device)),
            img_ids: noise::normal(3, [2 * TOKENS, 3], &device),
            txt_ids: Tensor::zeros([TEXT, 3], &device),
        });
        Self {
            model,
            context,
            x: noise::normal(4, [SAMPLES, 2 * TOKENS, 16], &device),
            t: Tensor::full([SAMPLES], 0.5, &device),
        }
    }

    fn adapter(&self, device: &Device) -> LoraAdapter {
        // The published one: rank 32 on all attention projections.
        let config = LoraConfig::default();
        LoraAdapter::init(&config, self.model.projections(), 1, device)
    }

    fn velocity(&self, adapter: Option<&LoraAdapter>) -> Tensor<3> {
        let (x, t) = (self.x.clone(), self.t.clone());
        self.model
            .evaluation(x, TOKENS, t, &self.context)
            .velocity(adapter)
    }
}

fn transformer(criterion: &mut Criterion) {
    let bench = Bench::new();
    let adapter = bench.adapter(&Device::flex());
    let trained = bench.adapter(&Device::flex().autodiff());
    let mut group = criterion.benchmark_group("transformer of 12 x (64 + 64 + 32) tokens");
    group.sample_size(10);
    group.bench_function("forward", |b| {
        b.iter(|| black_box(bench.velocity(None).into_data()));
    });
    group.bench_function("forward with an adapter", |b| {
        b.iter(|| black_box(bench.velocity(Some(&adapter)).into_data()));
    });
    group.bench_function("forward and backward of an adapter", |b| {
        b.iter(|| {
            let gradients = bench.velocity(Some(&trained)).square().mean().backward();
            black_box(trained.flat_gradients(&gradients))
        });
    });
    group.finish();
}

fn solvers(criterion: &mut Criterion) {
    let noise = noise::normal(1, [SAMPLES, 1024, 64], &Device::flex());
    let sigmas = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0];
    let mut group = criterion.benchmark_group("solver, 5 steps of 12 x 1024 x 64 values");
    for solver in [Solver::Euler, Solver::Dpm2] {
        group.bench_function(solver.to_string(), |b| {
            b.iter(|| {
                let x0 = solver::sample(solver, &sigmas, noise.clone(), |x, _| x);
                black_box(x0.into_data())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, transformer, solvers);
criterion_main!(benches);
