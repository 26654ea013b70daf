//! Training of the tiny base editor: flow matching on pairs with known targets, by the same
//! `retouch sft` that users have, and stopped while there is room to grow.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor};
use retouch_dataset::Split;
use retouch_evaluation::bootstrap::{self, Estimate};
use retouch_learner::adamw::AdamWConfig;
use retouch_learner::sft::{
    self, Decay, LearningRate, LogitNormal, SftOptions, SftProgress, Start, TextEncoders, Trained,
};
use retouch_models::autoencoder_kl::AutoencoderKl;
use retouch_models::editor::{Editor, Parts};
use retouch_models::weights::Pretrained;
use serde::{Deserialize, Serialize};

use super::candidates::{self, Candidates, Sampling};
use super::files::{copy_folder, halve_weights, rename};
use super::{Progress, TrainError, Watch};
use crate::dataset::{Dataset, Targets};
use crate::editor::{self, MAX_SEQUENCE_LENGTH};
use crate::scene::IMAGE_SIZE;

/// Pairs that the editor learns to edit from; other scenes than the committed ones.
const PAIRS: Dataset = Dataset {
    seed: 2,
    train: 16_384,
    test: 0,
    targets: Targets::Written,
};

/// Pairs that the base is made with. A part of their targets is wrong, as in pairs that were collected, so the base makes
/// the same mistakes, in pictures as sharp as any: post-training then chooses what is right among what the base can draw,
/// and need not teach it to draw.
const COLLECTED: Dataset = Dataset {
    seed: 3,
    targets: Targets::PartlyWrong(0.25),
    ..PAIRS
};

/// Updates after which the editor is kept for the judge to learn from; at the last of them, the making of the base begins.
const LEVELS_AFTER: [u64; 2] = [800, 2_400];

/// Updates that make the base.
const BASE_AFTER: u64 = 2_800;

/// Held-out pairs that the base is measured on.
const MEASURED: u32 = 256;

/// What came of the training.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct EditorReport {
    /// Mean oracle score of held-out edits, 0..5.
    pub oracle: Estimate,
}

/// Trains the base editor around an autoencoder.
///
/// # Errors
/// See [`TrainError`].
pub(super) fn train(
    folder: &Path,
    vae: &Path,
    seed: u64,
    watch: Watch<'_>,
) -> Result<EditorReport, TrainError> {
    let [start, pairs, collected, learning] =
        ["start", "pairs", "collected", "learning"].map(|name| folder.join(name));
    write_start(&start, vae, seed)?;
    PAIRS.write(&pairs)?;
    COLLECTED.write(&collected)?;
    for steps in LEVELS_AFTER {
        let options = SftOptions {
            base: start.clone(),
            dataset: pairs.clone(),
            output: learning.clone(),
            steps,
            ..options(seed, Decay::Constant)
        };
        keep(&level(folder, steps), &options, watch)?;
    }
    let options = SftOptions {
        base: learning.join("editor"),
        dataset: collected,
        output: folder.join("making"),
        steps: BASE_AFTER,
        ..options(seed + 1, Decay::Cosine)
    };
    keep(&base(folder), &options, watch)?;
    measure(&base(folder))
}

/// Fine-tunes an editor and copies it, in half precision, to where it is kept, unless it is there.
fn keep(level: &Path, options: &SftOptions, watch: Watch<'_>) -> Result<(), TrainError> {
    if level.exists() {
        return Ok(());
    }
    sft::train(options, &mut |progress| report_to(watch, progress))?;
    let copy = options.output.join("copy");
    copy_folder(&options.output.join("editor"), &copy)?;
    halve_weights(&copy)?;
    rename(&copy, level)
}

/// The base editor.
pub(super) fn base(folder: &Path) -> PathBuf {
    folder.join("base")
}

/// The editors that the judge learns from besides the base, from the worst to the best.
pub(super) fn levels(folder: &Path) -> Vec<PathBuf> {
    LEVELS_AFTER.map(|steps| level(folder, steps)).to_vec()
}

/// Copies the base editor to where it is published.
pub(super) fn publish(folder: &Path, to: &Path) -> Result<(), TrainError> {
    copy_folder(&base(folder), to)
}

/// An untrained editor around the autoencoder. Its modulations and its last layer start at zero,
/// so that every block starts as the identity.
fn write_start(folder: &Path, vae: &Path, seed: u64) -> Result<(), TrainError> {
    let device = Device::flex();
    let mut base = editor::base(seed, &device);
    let encoders = base.encoders.as_mut().expect("a new editor has all parts");
    encoders.vae = AutoencoderKl::load(vae, &device)?;
    base.transformer = base.transformer.map(&mut ZeroStart::default());
    Ok(Editor::new(base, editor::scheduler(), &device).save(folder)?)
}

/// Sets the modulations and the last layer of a transformer to zero.
#[derive(Default)]
struct ZeroStart {
    path: Vec<String>,
}

impl ModuleMapper for ZeroStart {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        let modulation = path.contains("norm") && path.contains(".linear.");
        if modulation || path.starts_with("proj_out.") {
            return param.map(|value| value.zeros_like());
        }
        param
    }
}

fn level(folder: &Path, steps: u64) -> PathBuf {
    folder.join(format!("after-{steps}"))
}

/// What both fine-tunings share. The first has no decay: where it is stopped must not matter to what came before.
fn options(seed: u64, decay: Decay) -> SftOptions {
    SftOptions {
        base: PathBuf::new(),
        dataset: PathBuf::new(),
        output: PathBuf::new(),
        steps: 0,
        trained: Trained::Full {
            start: Start::Weights,
            text_encoders: TextEncoders::Trained,
        },
        height: IMAGE_SIZE as usize,
        width: IMAGE_SIZE as usize,
        max_sequence_length: MAX_SEQUENCE_LENGTH,
        guidance_scale: candidates::GUIDANCE_SCALE,
        batch_size: 32,
        micro_batch_size: 8,
        adamw: AdamWConfig {
            learning_rate: 1e-3,
            beta2: 0.99,
            ..AdamWConfig::default()
        },
        learning_rate: LearningRate {
            warmup_steps: 100,
            decay,
        },
        max_grad_norm: 1.0,
        ema_decay_max: 0.99,
        noise_levels: LogitNormal {
            mean: 0.5,
            std: 1.0,
        },
        seed,
        device: Device::flex(),
        validation_rows: 0,
        validate_every: 100,
        checkpoint_every: 100,
    }
}

fn report_to(watch: Watch<'_>, progress: SftProgress) -> ControlFlow<()> {
    watch(match progress {
        SftProgress::Encoding { done, total } => Progress {
            stage: "editor's latents",
            step: done as u64,
            steps: total as u64,
            loss: 0.0,
        },
        SftProgress::Step { entry, steps } => Progress {
            stage: "editor",
            step: entry.step,
            steps,
            loss: entry.loss,
        },
    })
}

fn measure(folder: &Path) -> Result<EditorReport, TrainError> {
    let editor = Editor::load(folder, &Device::flex(), Parts::All)?;
    let sampling = Sampling {
        split: Split::Test,
        seed: 1,
        first: 0,
        cases: MEASURED,
        edits: 1,
    };
    let sets = candidates::sample(&editor, sampling)?;
    let scores: Vec<f64> = sets.iter().flat_map(Candidates::scores).collect();
    Ok(EditorReport {
        oracle: bootstrap::mean(&scores, 0),
    })
}
