//! A transformer of plain adaLN blocks on our ops, beside PyTorch's eager f32 on the same shapes:
//!
//!     PYTHON=python3 cargo bench --package retouch-models --bench block
//!
//! Both sides take turns, pass by pass, so that whatever else the machine does hits both. Prints
//! the fastest and the median pass of each, their ratio, and each process's peak memory.
//! Without `PYTHON`, only ours.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use retouch_models::init::Init;
use retouch_models::lora::{LoraAdapter, LoraConfig, LoraLinear, Projection, Scope};
use retouch_models::noise;
use retouch_models::ops::{self, AttentionMask};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

// As in tools/bench/block.py.
const DIM: usize = 256;
const HEADS: usize = 8;
const BLOCKS: usize = 8;
const TOKENS: usize = 576;
const BATCH: usize = 4;
const RANK: usize = 16;
const THREADS: usize = 2;
const EPS: f64 = 1e-6;
/// Passes of each kind that are not counted, and that are.
const WARM: usize = 2;
const PASSES: usize = 9;

#[derive(Module, Debug)]
struct Block {
    modulation: LoraLinear,
    to_q: LoraLinear,
    to_k: LoraLinear,
    to_v: LoraLinear,
    to_out: LoraLinear,
    proj_in: LoraLinear,
    proj_out: LoraLinear,
}

impl Block {
    fn init(scope: &Scope<'_>) -> Self {
        Self {
            modulation: scope.linear("modulation", DIM, 6 * DIM),
            to_q: scope.linear("to_q", DIM, DIM),
            to_k: scope.linear("to_k", DIM, DIM),
            to_v: scope.linear("to_v", DIM, DIM),
            to_out: scope.linear("to_out", DIM, DIM),
            proj_in: scope.linear("proj_in", DIM, 4 * DIM),
            proj_out: scope.linear("proj_out", 4 * DIM, DIM),
        }
    }

    fn forward(&self, x: Tensor<3>, rest: &Rest, adapter: Option<&LoraAdapter>) -> Tensor<3> {
        let condition = ops::silu(rest.condition.clone());
        let parts = self.modulation.forward(condition, None);
        let parts = parts.unsqueeze_dim::<3>(1).chunk(6, 2);
        let [shift, scale, gate, shift_mlp, scale_mlp, gate_mlp] =
            <[Tensor<3>; 6]>::try_from(parts).expect("six parts");
        let n = ops::layer_norm_modulate(x.clone(), shift, scale, EPS);
        let rotated = |linear: &LoraLinear| {
            let (cos, sin) = (rest.cos.clone(), rest.sin.clone());
            let x = linear.forward(n.clone(), adapter);
            ops::rms_norm_rope(x, rest.ones.clone(), cos, sin, HEADS, EPS)
        };
        let (q, k) = (rotated(&self.to_q), rotated(&self.to_k));
        let v = ops::split_heads(self.to_v.forward(n.clone(), adapter), HEADS);
        let scale = ((DIM / HEADS) as f32).sqrt().recip();
        let a = ops::attention(q, k, v, &AttentionMask::None, scale);
        let x = ops::gate_add(x, self.to_out.forward(a, adapter), gate);
        let n = ops::layer_norm_modulate(x.clone(), shift_mlp, scale_mlp, EPS);
        let hidden = ops::gelu_tanh(self.proj_in.forward(n, None));
        ops::gate_add(x, self.proj_out.forward(hidden, None), gate_mlp)
    }
}

/// What all blocks share.
struct Rest {
    condition: Tensor<2>,
    cos: Tensor<2>,
    sin: Tensor<2>,
    ones: Tensor<1>,
}

struct Ours {
    blocks: Vec<Block>,
    rest: Rest,
    x: Tensor<3>,
    adapter: LoraAdapter,
    trained: LoraAdapter,
}

impl Ours {
    fn new() -> Self {
        let device = Device::flex();
        let (init, projections) = (Init::new(1, &device), RefCell::default());
        let root = Scope::root(&init, &projections);
        let block = |i: usize| Block::init(&root.child(&i.to_string())).no_grad();
        let blocks = (0..BLOCKS).map(block).collect();
        let projections: Vec<Projection> = projections.take();
        let angles = noise::normal::<2>(2, [TOKENS, DIM / HEADS / 2], &device);
        let adapter = |device: &Device| {
            let config = LoraConfig {
                rank: RANK,
                alpha: RANK as f64,
                target_modules: ["to_q", "to_k", "to_v", "to_out"].map(String::from).into(),
            };
            LoraAdapter::init(&config, &projections, 3, device)
        };
        Self {
            blocks,
            rest: Rest {
                condition: noise::normal(4, [BATCH, DIM], &device),
                cos: angles.clone().cos(),
                sin: angles.sin(),
                ones: Tensor::ones([DIM / HEADS], &device),
            },
            x: noise::normal(5, [BATCH, TOKENS, DIM], &device),
            adapter: adapter(&device),
            trained: adapter(&device.autodiff()),
        }
    }

    fn output(&self, adapter: &LoraAdapter) -> Tensor<3> {
        let pass = |x, block: &Block| block.forward(x, &self.rest, Some(adapter));
        self.blocks.iter().fold(self.x.clone(), pass)
    }

    /// Milliseconds of one pass.
    fn pass(&self, kind: Kind) -> f64 {
        let begin = Instant::now();
        match kind {
            Kind::Forward => drop(self.output(&self.adapter).mean().into_data()),
            Kind::Train => {
                let gradients = self.output(&self.trained).square().mean().backward();
                drop(self.trained.flat_gradients(&gradients));
            }
        }
        begin.elapsed().as_secs_f64() * 1e3
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Forward,
    Train,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Train => "train",
        }
    }
}

/// PyTorch in a process of its own: it is told what to do line by line, and answers with a number.
struct Torch {
    child: Child,
    asked: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Torch {
    fn start(python: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/bench/block.py");
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("$PYTHON starts");
        let asked = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Self {
            child,
            asked,
            answers,
        }
    }

    fn ask(&mut self, what: &str) -> f64 {
        writeln!(self.asked, "{what}").expect("PyTorch listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("PyTorch answers");
        line.trim().parse().expect("a number")
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Peak resident memory of this process in MB.
fn peak_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let words = line.and_then(|line| line.split_whitespace().nth(1));
    let kib: f64 = words.expect("VmHWM").parse().expect("a number");
    kib * 1024.0 / 1e6
}

fn describe(times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[0], times[times.len() / 2])
}

fn compare(kind: Kind, ours: &Ours, torch: &mut Option<Torch>) {
    let (mut own, mut other) = (Vec::new(), Vec::new());
    for pass in 0..WARM + PASSES {
        let both = (
            ours.pass(kind),
            torch.as_mut().map(|torch| torch.ask(kind.name())),
        );
        if pass >= WARM {
            own.push(both.0);
            other.extend(both.1);
        }
    }
    let name = kind.name();
    let (least, median) = describe(&mut own);
    println!("{name:8} ours  min {least:6.0} median {median:6.0} ms");
    if !other.is_empty() {
        let (torch_least, torch_median) = describe(&mut other);
        println!("{name:8} torch min {torch_least:6.0} median {torch_median:6.0} ms");
        let (min, median) = (least / torch_least, median / torch_median);
        println!("{name:8} ours / torch: min {min:.2}, median {median:.2}");
    }
}

fn main() {
    rayon::ThreadPoolBuilder::new()
        .num_threads(THREADS)
        .build_global()
        .expect("the first pool");
    let load = std::fs::read_to_string("/proc/loadavg").expect("Linux");
    println!(
        "{BLOCKS} blocks, dim {DIM}, batch {BATCH}, {TOKENS} tokens, LoRA r{RANK}, f32, {THREADS} threads; load {}",
        load.trim()
    );
    let mut torch = std::env::var("PYTHON")
        .ok()
        .map(|python| Torch::start(&python));
    let ours = Ours::new();
    compare(Kind::Forward, &ours, &mut torch);
    compare(Kind::Train, &ours, &mut torch);
    println!("peak memory: ours {:.0} MB", peak_mb());
    if let Some(torch) = &mut torch {
        println!("peak memory: torch {:.0} MB", torch.ask("peak_mb"));
    }
}
