use burn::tensor::{DType, Device, Tensor};

use super::*;
use crate::golden::Case;
use crate::init::Init;
use crate::noise;
use crate::weights::{Pretrained, read_config};

#[test]
fn the_autoencoder_equals_the_reference() {
    for case in Case::all("autoencoder_kl") {
        let config = read_config(&case.path("config.json")).unwrap();
        let weights = case.weights();
        let vae = AutoencoderKl::from_weights(&config, &weights, &Device::flex(), DType::F32);
        let vae = vae.unwrap();
        case.check("out.moments", vae.encode(case.tensor("in.pixels")), 1e-4);
        case.check("out.decoded", vae.decode(case.tensor("in.latents")), 1e-4);
    }
}

/// As diffusers' pipelines compute it on GPUs.
#[test]
fn half_precision_gives_nearly_the_same_in_f32() {
    for case in Case::all("autoencoder_kl") {
        let config = read_config(&case.path("config.json")).unwrap();
        let [wide, narrow] = [DType::F32, DType::BF16].map(|dtype| {
            let (weights, device) = (case.weights(), Device::flex());
            let vae = AutoencoderKl::from_weights(&config, &weights, &device, dtype).unwrap();
            let latents: Tensor<4> = case.tensor("in.latents");
            let pixels: Tensor<4> = case.tensor("in.pixels");
            (vae.encode(pixels), vae.decode(latents))
        });
        for (wide, narrow) in [(wide.0, narrow.0), (wide.1, narrow.1)] {
            assert_eq!(narrow.dtype(), DType::F32);
            let dot = |a: &Tensor<4>, b: &Tensor<4>| -> f32 {
                (a.clone() * b.clone()).sum().into_scalar()
            };
            let cosine = dot(&wide, &narrow) / (dot(&wide, &wide) * dot(&narrow, &narrow)).sqrt();
            assert!(cosine > 0.999, "{cosine}");
            assert_ne!(
                wide.into_data(),
                narrow.into_data(),
                "the second is no narrower"
            );
        }
    }
}

#[test]
fn sizes_follow_the_levels_and_scaling_is_undone() {
    let mut config = AutoencoderKlConfig::with_levels(vec![4, 4, 8]);
    (config.norm_num_groups, config.shift_factor) = (2, Some(0.5));
    let device = Device::flex();
    let vae = AutoencoderKl::init(&config, &Init::new(1, &device));
    let pixels = noise::normal(1, [2, 3, 16, 24], &device);
    let latents = vae.encode_scaled(pixels.clone());
    assert_eq!(
        latents.dims(),
        [2, 4, 16 / config.scale_factor(), 24 / config.scale_factor()]
    );
    let mean = vae.encode(pixels).narrow(1, 0, 4);
    let error = (vae.decode_scaled(latents) - vae.decode(mean))
        .abs()
        .max()
        .into_scalar::<f32>();
    assert!(error < 1e-5, "{error}");
}

#[test]
fn other_blocks_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"down_block_types": ["AttnDownEncoderBlock2D"]}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let error = AutoencoderKl::load(folder.path(), &Device::flex())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("down_block_types = AttnDownEncoderBlock2D"),
        "{error}"
    );
}

#[test]
fn saved_models_load_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = AutoencoderKlConfig::with_levels(vec![4]);
    config.norm_num_groups = 2;
    let device = Device::flex();
    let vae = AutoencoderKl::init(&config, &Init::new(1, &device));
    vae.save(folder.path()).unwrap();
    let loaded = AutoencoderKl::load(folder.path(), &device).unwrap();
    let pixels = noise::normal(1, [1, 3, 4, 4], &device);
    assert_eq!(loaded.config(), vae.config());
    assert_eq!(
        loaded.encode(pixels.clone()).into_data(),
        vae.encode(pixels).into_data()
    );
}
