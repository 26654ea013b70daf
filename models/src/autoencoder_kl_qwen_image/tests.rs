use burn::tensor::{DType, Device, Tensor};

use super::*;
use crate::golden::Case;
use crate::init::Init;
use crate::noise;
use crate::weights::{Pretrained, Weights, read_config};

#[test]
fn the_autoencoder_equals_the_reference() {
    for case in Case::all("autoencoder_kl_qwen_image") {
        let config = read_config(&case.path("config.json")).unwrap();
        let (weights, device) = (case.weights(), Device::flex());
        let vae = AutoencoderKlQwenImage::from_weights(&config, &weights, &device, DType::F32);
        let vae = vae.unwrap();
        let moments = vae.encode(case.tensor::<5>("in.pixels").squeeze_dim(2));
        case.check("out.moments", moments.unsqueeze_dim::<5>(2), 1e-4);
        let decoded = vae.decode(case.tensor::<5>("in.latents").squeeze_dim(2));
        case.check("out.decoded", decoded.unsqueeze_dim::<5>(2), 1e-4);
    }
}

fn small() -> AutoencoderKlQwenImage {
    let config = AutoencoderKlQwenImageConfig {
        base_dim: 4,
        z_dim: 2,
        dim_mult: vec![1, 2, 2],
        num_res_blocks: 1,
        temperal_downsample: vec![false, true],
        latents_mean: vec![0.5, -1.0],
        latents_std: vec![2.0, 0.25],
        ..Default::default()
    };
    AutoencoderKlQwenImage::init(&config, &Init::new(1, &Device::flex()))
}

/// As diffusers' pipelines compute it on GPUs.
#[test]
fn half_precision_gives_nearly_the_same_in_f32() {
    for case in Case::all("autoencoder_kl_qwen_image") {
        let config = read_config(&case.path("config.json")).unwrap();
        let [wide, narrow] = [DType::F32, DType::BF16].map(|dtype| {
            let (weights, device) = (case.weights(), Device::flex());
            let vae =
                AutoencoderKlQwenImage::from_weights(&config, &weights, &device, dtype).unwrap();
            let latents: Tensor<4> = case.tensor::<5>("in.latents").squeeze_dim(2);
            let pixels: Tensor<4> = case.tensor::<5>("in.pixels").squeeze_dim(2);
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
    let vae = small();
    let pixels = noise::normal(1, [2, 3, 16, 24], &Device::flex());
    let latents = vae.encode_scaled(pixels.clone());
    assert_eq!(latents.dims(), [2, 2, 4, 6]);
    let mean = vae.encode(pixels).narrow(1, 0, 2);
    let error = (vae.decode_scaled(latents) - vae.decode(mean)).abs().max();
    assert!(error.into_scalar::<f32>() < 1e-5);
}

#[test]
fn saved_models_load_back_with_the_layers_that_one_frame_passes_by() {
    let folder = tempfile::tempdir().unwrap();
    let vae = small();
    vae.save(folder.path()).unwrap();
    let loaded = AutoencoderKlQwenImage::load(folder.path(), &Device::flex()).unwrap();
    let pixels = noise::normal(1, [1, 3, 8, 8], &Device::flex());
    assert_eq!(loaded.config(), vae.config());
    assert_eq!(
        loaded.encode(pixels.clone()).into_data(),
        vae.encode(pixels).into_data()
    );
    let weights = Weights::from_folder(folder.path()).unwrap();
    let shape = weights.shape("encoder.down_blocks.3.time_conv.weight");
    assert_eq!(shape, Some(&[8, 8, 3, 1, 1][..]));
    assert!(
        weights
            .shape("decoder.up_blocks.0.upsamplers.0.resample.1.bias")
            .is_some()
    );
}

#[test]
fn attention_in_other_levels_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("config.json"),
        r#"{"attn_scales": [0.5]}"#,
    )
    .unwrap();
    let error = AutoencoderKlQwenImage::load(folder.path(), &Device::flex()).unwrap_err();
    let expected = "attn_scales = [0.5] is not supported; supported: []";
    assert!(error.to_string().ends_with(expected), "{error}");
}
