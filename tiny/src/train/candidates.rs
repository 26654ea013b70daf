//! Edits of known worth, for the judge to learn from: sampled from editors of several qualities,
//! and made up.

use burn::tensor::{Device, Tensor};
use image::RgbImage;
use rand_chacha::ChaCha12Rng;
use rayon::prelude::*;
use retouch_dataset::Split;
use retouch_evaluation::Verdict;
use retouch_learner::lanes::Lanes;
use retouch_models::autoencoder_kl::AutoencoderKl;
use retouch_models::editor::{EditError, Editor, SampleOptions};
use retouch_models::noise;
use retouch_models::solver::Solver;

use super::vae;
use crate::edit::Case;
use crate::editor::{MAX_SEQUENCE_LENGTH, SIZE};
use crate::generate::{self, Stream};
use crate::judge::TOKEN_SIZE;
use crate::oracle::Oracle;

/// The guidance that the editor is told, in training and in use.
pub(super) const GUIDANCE_SCALE: f64 = 2.5;

/// How the tiny runs sample.
const SAMPLE: SampleOptions = SampleOptions {
    num_inference_steps: 6,
    solver: Solver::Dpm2,
    guidance_scale: GUIDANCE_SCALE,
    true_cfg_scale: 1.0,
};

/// Edits of one case with what the oracle says of them.
pub(super) struct Candidates {
    pub(super) case: Case,
    pub(super) source: RgbImage,
    pub(super) target: RgbImage,
    pub(super) images: Vec<RgbImage>,
    pub(super) verdicts: Vec<Verdict>,
    /// Of each edit, how good its square at each image token of the judge is, 0..1, where something counts there.
    pub(super) grades: Vec<Vec<Option<f64>>>,
}

impl Candidates {
    /// The oracle's scores, 0..5.
    pub(super) fn scores(&self) -> Vec<f64> {
        self.verdicts
            .iter()
            .map(|verdict| verdict.score())
            .collect()
    }
}

/// Which edits to make.
#[derive(Clone, Copy)]
pub(super) struct Sampling {
    pub(super) split: Split,
    /// The cases' seed.
    pub(super) seed: u64,
    /// The first case.
    pub(super) first: u32,
    pub(super) cases: u32,
    /// Edits of each case.
    pub(super) edits: usize,
}

impl Sampling {
    fn indices(self) -> Vec<u32> {
        (self.first..self.first + self.cases).collect()
    }
}

/// Samples edits from an editor.
pub(super) fn sample(editor: &Editor, sampling: Sampling) -> Result<Vec<Candidates>, EditError> {
    let lanes = Lanes::for_device(&Device::flex());
    let sets = lanes.map(sampling.indices(), |index| {
        sample_case(editor, sampling, index)
    });
    sets.into_iter().collect()
}

fn sample_case(editor: &Editor, sampling: Sampling, index: u32) -> Result<Candidates, EditError> {
    let case = generate::case(sampling.seed, sampling.split, index);
    let source = case.source_image();
    let condition = editor.encode(&case.prompt(), &source, SIZE, MAX_SEQUENCE_LENGTH)?;
    let [tokens, channels] = editor.latent_shape(SIZE);
    let seed = sampling.seed << 32 | u64::from(index);
    let noise = noise::normal(seed, [sampling.edits, tokens, channels], &Device::flex());
    let x0: Tensor<3> = editor.sample(&condition, noise, &SAMPLE, None)?;
    Ok(scored(case, editor.decode(x0, &condition)?))
}

/// Makes edits up; they go through the autoencoder, so that nothing tells them from sampled ones.
pub(super) fn make_up(
    vae: &AutoencoderKl,
    sampling: Sampling,
    make_up: fn(&Case, &mut ChaCha12Rng) -> RgbImage,
) -> Vec<Candidates> {
    let lanes = Lanes::for_device(&Device::flex());
    lanes.map(sampling.indices(), |index| {
        let case = generate::case(sampling.seed, sampling.split, index);
        let mut rng = generate::rng(sampling.seed, Stream::MadeUp, index);
        let images: Vec<RgbImage> = (0..sampling.edits)
            .map(|_| make_up(&case, &mut rng))
            .collect();
        scored(case, vae::through(vae, &images))
    })
}

fn scored(case: Case, images: Vec<RgbImage>) -> Candidates {
    let oracle = Oracle::new(&case);
    let verdicts = images.par_iter().map(|image| oracle.verdict(image));
    let grades = images
        .par_iter()
        .map(|image| oracle.grades(image, TOKEN_SIZE));
    Candidates {
        source: case.source_image(),
        target: case.target_image(),
        verdicts: verdicts.collect(),
        grades: grades.collect(),
        case,
        images,
    }
}
