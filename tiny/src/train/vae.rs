//! Training of the tiny editor's autoencoder.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use rand::RngExt;
use retouch_dataset::Split;
use retouch_models::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use retouch_models::init::Init;
use retouch_models::noise;
use retouch_models::weights::{LoadError, Pretrained, read_config, write_config};
use serde::{Deserialize, Serialize};

use super::files::rename;
use super::fit::{Fit, Recipe};
use super::{Progress, TrainError, Watch, tell};
use crate::editor::vae_config;
use crate::generate::{self, Stream};
use crate::mistakes;
use crate::oracle::Oracle;
use crate::scene::IMAGE_SIZE;

const RECIPE: Recipe = Recipe {
    steps: 4_000,
    warmup_steps: 50,
    learning_rate: 2e-3,
    beta2: 0.99,
    weight_decay: 0.0,
};

/// Pictures of one update, and of one part of it.
const BATCH: u32 = 16;
const PART: u32 = 4;

/// Weight of the divergence from a standard Gaussian, per latent value.
const KL_WEIGHT: f64 = 1e-4;

/// Noise on the latents in training, as a part of their spread, is drawn up to this. An editor's latents are never
/// exact, and a decoder that has seen none but exact ones draws every error as a blur.
const LATENT_NOISE_MAX: f32 = 0.4;

/// Pictures that scale and shift of the latents are measured on.
const MEASURED: u32 = 256;

/// What came of the training, over held-out targets.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct VaeReport {
    /// Peak signal-to-noise ratio by the mean squared error over all of them, in decibels.
    pub psnr_db: f64,
    /// Mean oracle score of what went through the autoencoder.
    pub oracle: f64,
}

/// Trains an autoencoder.
///
/// # Errors
/// If the folder can't be written, or `watch` asks to stop.
pub(super) fn train(folder: &Path, seed: u64, watch: Watch<'_>) -> Result<VaeReport, TrainError> {
    let trained = trained(folder);
    if !trained.exists() {
        let copy = folder.join("copy");
        fit(&copy, seed, watch)?;
        rename(&copy, &trained)?;
    }
    report(&AutoencoderKl::load(&trained, &Device::flex())?)
}

/// The trained autoencoder.
pub(super) fn trained(folder: &Path) -> PathBuf {
    folder.join("trained")
}

/// The autoencoder of an editor's folder.
pub(super) fn of_editor(editor: &Path) -> Result<AutoencoderKl, LoadError> {
    AutoencoderKl::load(&editor.join("vae"), &Device::flex())
}

fn fit(folder: &Path, seed: u64, watch: Watch<'_>) -> Result<(), TrainError> {
    let config = vae_config();
    let module = AutoencoderKl::init(&config, &Init::new(seed, &Device::flex()));
    let mut fit = Fit::new(module, RECIPE);
    while fit.step() < RECIPE.steps {
        let first = fit.step() as u32 * BATCH;
        let parts = (0..BATCH / PART).map(|part| first + part * PART).collect();
        let loss = fit.update(parts, |vae, first| {
            let images: Vec<RgbImage> = (first..first + PART)
                .map(|index| picture(seed, index))
                .collect();
            let level =
                generate::rng(seed, Stream::LatentNoise, first).random_range(0.0..LATENT_NOISE_MAX);
            loss(vae, pixels(&images), seed ^ u64::from(first), level)
        });
        tell(
            watch,
            Progress {
                stage: "vae",
                step: fit.step(),
                steps: RECIPE.steps,
                loss,
            },
        )?;
    }
    let vae = fit.averaged();
    vae.save(folder)?;
    Ok(scale(folder, &vae, seed)?)
}

/// Mean |error| + mean error^2 + the weighted divergence, with noise of `level` times their spread on the latents. `[1]`
fn loss(vae: &AutoencoderKl, pixels: Tensor<4>, seed: u64, level: f32) -> Tensor<1> {
    let channels = vae.config().latent_channels;
    let moments = vae.encode(pixels.clone());
    let mean = moments.clone().narrow(1, 0, channels);
    let log_variance = moments.narrow(1, channels, channels).clamp(-30.0, 20.0);
    let normal = |seed| Tensor::from_inner(noise::normal(seed, mean.dims(), &Device::flex()));
    let spread = (mean.clone() * mean.clone())
        .mean()
        .sqrt()
        .reshape([1, 1, 1, 1]);
    let latents = mean.clone()
        + (log_variance.clone() * 0.5).exp() * normal(seed)
        + normal(!seed) * spread * level;
    let error = vae.decode(latents) - pixels;
    let divergence =
        (mean.clone() * mean + log_variance.clone().exp() - log_variance - 1.0).mean() * 0.5;
    error.clone().abs().mean() + (error.clone() * error).mean() + divergence * KL_WEIGHT
}

/// A picture that an editor may see or make.
fn picture(seed: u64, index: u32) -> RgbImage {
    let case = generate::case(seed, Split::Train, index / 3);
    match index % 3 {
        0 => case.source_image(),
        1 => case.target_image(),
        _ => mistakes::candidate(&case, &mut generate::rng(seed, Stream::Pictures, index)),
    }
}

/// Notes scale and shift in the configuration, so that latents have mean 0 and variance 1.
fn scale(folder: &Path, vae: &AutoencoderKl, seed: u64) -> Result<(), LoadError> {
    let images: Vec<RgbImage> = (0..MEASURED).map(|index| picture(seed, index)).collect();
    let channels = vae.config().latent_channels;
    let latents: Vec<f64> = images
        .chunks(32)
        .flat_map(|images| {
            let mean = vae.encode(plain(images)).narrow(1, 0, channels);
            mean.into_data().iter::<f64>().collect::<Vec<_>>()
        })
        .collect();
    let count = latents.len() as f64;
    let mean = latents.iter().sum::<f64>() / count;
    let variance = latents.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    let path = folder.join("config.json");
    let config: AutoencoderKlConfig = read_config(&path)?;
    let config = AutoencoderKlConfig {
        scaling_factor: variance.sqrt().recip(),
        shift_factor: Some(mean),
        ..config
    };
    write_config(&path, &config)
}

fn report(vae: &AutoencoderKl) -> Result<VaeReport, TrainError> {
    let cases: Vec<_> = (0..128)
        .map(|index| generate::case(1, Split::Test, index))
        .collect();
    let (mut squared_error, mut oracle) = (0.0, 0.0);
    for cases in cases.chunks(32) {
        let targets: Vec<RgbImage> = cases.iter().map(|case| case.target_image()).collect();
        let decoded = through(vae, &targets);
        for ((case, target), decoded) in cases.iter().zip(&targets).zip(&decoded) {
            squared_error += mean_squared_error(target, decoded);
            oracle += Oracle::new(case).score(decoded);
        }
    }
    let count = cases.len() as f64;
    Ok(VaeReport {
        psnr_db: -10.0 * (squared_error / count).log10(),
        oracle: oracle / count,
    })
}

/// Pictures as they come back from the autoencoder.
pub(super) fn through(vae: &AutoencoderKl, images: &[RgbImage]) -> Vec<RgbImage> {
    let decoded = vae.decode_scaled(vae.encode_scaled(plain(images)));
    let bytes: Vec<u8> = (decoded.permute([0, 2, 3, 1]) * 127.5 + 127.5)
        .into_data()
        .iter::<f32>()
        .map(|value| value.round().clamp(0.0, 255.0) as u8)
        .collect();
    let image = |bytes: &[u8]| RgbImage::from_raw(IMAGE_SIZE, IMAGE_SIZE, bytes.to_vec());
    let size = (IMAGE_SIZE * IMAGE_SIZE * 3) as usize;
    bytes
        .chunks_exact(size)
        .map(|bytes| image(bytes).expect("whole pictures"))
        .collect()
}

/// Of all channels, as parts of the full range.
fn mean_squared_error(a: &RgbImage, b: &RgbImage) -> f64 {
    let squared = |(a, b): (&u8, &u8)| (f64::from(a.abs_diff(*b)) / 255.0).powi(2);
    let sum: f64 = a.as_raw().iter().zip(b.as_raw()).map(squared).sum();
    sum / a.as_raw().len() as f64
}

/// Pictures in -1..1 on the autodiff device, as constants: `[B, 3, H, W]`
fn pixels(images: &[RgbImage]) -> Tensor<4> {
    Tensor::from_inner(plain(images))
}

/// Pictures in -1..1: `[B, 3, H, W]`
fn plain(images: &[RgbImage]) -> Tensor<4> {
    let side = IMAGE_SIZE as usize;
    let values: Vec<f32> = images
        .iter()
        .flat_map(|image| {
            image
                .as_raw()
                .iter()
                .map(|byte| f32::from(*byte) / 127.5 - 1.0)
        })
        .collect();
    let data = TensorData::new(values, [images.len(), side, side, 3]);
    Tensor::<4>::from_data(data, &Device::flex()).permute([0, 3, 1, 2])
}
