//! Groups sampled with the small random pipeline of the golden cases.

use std::{path::PathBuf, sync::Arc};

use burn::tensor::Device;
use image::{Rgb, RgbImage};
use retouch_models::{
    editor::{Condition, Editor, EditorSource, Parts},
    exchange,
    lora::flat_len,
    noise,
};
use retouch_proto::{
    ContentHash, GroupId, Iteration,
    config::{Dtype, RunConfig, Solver},
};
use retouch_rollout_worker::sampler::{GroupInput, SampleError, Sampler, Version};

fn config() -> RunConfig {
    let folder = "../tools/parity/cases/kontext_pipeline__dpm2_truncated_prompt/pipeline";
    let mut config = RunConfig {
        seed: 11,
        ..RunConfig::default()
    };
    config.model.path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(folder)
        .display()
        .to_string();
    config.model.dtype = Dtype::F32;
    (config.model.height, config.model.width) = (24, 16);
    config.model.max_sequence_length = 12;
    config.rollout.num_inference_steps = 3;
    config.rollout.solver = Solver::Dpm2;
    config.lora.adapter.rank = 2;
    config.lora.adapter.alpha = 4.0;
    config
}

fn sampler() -> Sampler {
    Sampler::load(&config(), Device::flex(), &EditorSource::Own).expect("the golden pipeline")
}

fn input(index: u32, group_size: usize) -> GroupInput {
    GroupInput {
        group: GroupId {
            iteration: Iteration(3),
            index,
        },
        prompt: "add a red dot".into(),
        paths: vec!["images/0.png".into()],
        sources: Arc::new(picture().into()),
        version: None,
        group_size,
    }
}

fn picture() -> RgbImage {
    RgbImage::from_fn(16, 24, |x, y| Rgb([x as u8 * 9, y as u8 * 9, 80]))
}

/// An adapter with both factors random, so that it changes what is sampled.
fn version() -> Version {
    let config = config();
    let editor = Editor::load(
        config.model.path.as_ref(),
        &Device::flex(),
        Parts::Transformer,
    )
    .expect("the pipeline");
    let lora = config.lora.adapter;
    let flat: Vec<f32> = noise::normal_values(5, flat_len(&lora, editor.projections()))
        .into_iter()
        .map(|x| 0.3 * x)
        .collect();
    let bytes = bytes::Bytes::from(exchange::adapter_to_bytes(&flat));
    Version {
        hash: ContentHash::of(&bytes),
        bytes,
    }
}

#[test]
fn another_worker_makes_the_same_group() {
    let (mut first, mut second) = (sampler(), sampler());
    // What was sampled before must not matter.
    first.sample_group(&input(1, 2)).expect("a group");
    let made = first.sample_group(&input(0, 3)).expect("a group");
    let again = second.sample_group(&input(0, 3)).expect("a group");
    assert_eq!((&made.x0, &made.condition), (&again.x0, &again.condition));
    assert_eq!(made.edits, again.edits);
}

#[test]
fn a_sampler_that_rested_makes_the_same_group() {
    // Two roles of one process: that one rests is nothing to the other.
    let editors = EditorSource::shared();
    let load = || Sampler::load(&config(), Device::flex(), &editors).expect("the pipeline");
    let (mut resting, mut other) = (load(), load());
    let before = resting.sample_group(&input(0, 2)).expect("a group");
    resting.rest();
    for sampler in [&mut other, &mut resting] {
        let made = sampler.sample_group(&input(0, 2)).expect("a group");
        assert_eq!((&made.x0, &made.edits), (&before.x0, &before.edits));
    }
    // A new prompt takes the text encoders again.
    let [after, apart] = [&mut resting, &mut other].map(|sampler| {
        let input = GroupInput {
            prompt: "add a blue dot".into(),
            ..input(1, 1)
        };
        sampler.sample_group(&input).expect("a group").condition
    });
    assert_eq!(after, apart);
}

#[test]
fn candidates_differ_and_latents_are_what_was_decoded() {
    let made = sampler().sample_group(&input(0, 3)).expect("a group");
    let device = Device::flex();
    let x0 = exchange::latents_from_bytes(&made.x0, &device).expect("latents");
    let condition = Condition::from_bytes(&made.condition, &device).expect("a condition");
    assert_eq!(x0.dims()[0], 3);
    assert_eq!(
        (made.edits.len(), made.edits[0].dimensions()),
        (3, (16, 24))
    );
    let first: Vec<f32> = x0.clone().narrow(0, 0, 1).into_data().iter().collect();
    let second: Vec<f32> = x0.clone().narrow(0, 1, 1).into_data().iter().collect();
    assert_ne!(first, second);
    let editor =
        Editor::load(config().model.path.as_ref(), &device, Parts::All).expect("the pipeline");
    assert_eq!(editor.decode(x0, &condition).expect("encoders"), made.edits);
}

/// Of all values of two blobs of latents.
fn cosine(a: &[u8], b: &[u8]) -> f64 {
    let values = |bytes: &[u8]| -> Vec<f64> {
        let latents = exchange::latents_from_bytes(bytes, &Device::flex()).expect("latents");
        latents.into_data().iter().collect()
    };
    let (a, b) = (values(a), values(b));
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

#[test]
fn half_precision_samples_nearly_the_same_with_and_without_an_adapter() {
    for version in [None, Some(version())] {
        let input = GroupInput {
            version,
            ..input(0, 2)
        };
        let [full, half] = [Dtype::F32, Dtype::Bf16].map(|dtype| {
            let mut config = config();
            config.model.dtype = dtype;
            let mut sampler = Sampler::load(&config, Device::flex(), &EditorSource::Own)
                .expect("the golden pipeline");
            sampler.sample_group(&input).expect("a group")
        });
        let cosine = cosine(&full.x0, &half.x0);
        println!("cosine of the latents {cosine:.6}");
        assert!(cosine > 0.999, "{cosine}");
        assert_ne!(full.x0, half.x0, "the second base is no narrower");
    }
}

#[test]
fn groups_are_as_large_as_their_sources() {
    let mut sampler = sampler();
    for (width, height) in [(16, 24), (32, 16), (16, 16)] {
        let input = GroupInput {
            sources: Arc::new(RgbImage::from_pixel(width, height, Rgb([9, 80, 200])).into()),
            paths: vec![format!("images/{width}x{height}.png")],
            ..input(0, 2)
        };
        let made = sampler.sample_group(&input).expect("a group");
        assert_eq!(made.edits[1].dimensions(), (width, height));
        let condition =
            Condition::from_bytes(&made.condition, &Device::flex()).expect("a condition");
        assert_eq!(
            (condition.size.width, condition.size.height),
            (width as usize, height as usize)
        );
    }
}

#[test]
fn the_version_decides_what_is_sampled() {
    let mut sampler = sampler();
    let bare = sampler.sample_group(&input(0, 2)).expect("a group");
    let adapted = GroupInput {
        version: Some(version()),
        ..input(0, 2)
    };
    let changed = sampler.sample_group(&adapted).expect("a group");
    assert_ne!(bare.x0, changed.x0);
    assert_eq!(bare.condition, changed.condition);
    assert_eq!(
        sampler.sample_group(&adapted).expect("a group").x0,
        changed.x0
    );
}

#[test]
fn an_adapter_that_does_not_fit_is_an_error_with_its_hash() {
    let bytes = bytes::Bytes::from(exchange::adapter_to_bytes(&[1.0, 2.0]));
    let version = Version {
        hash: ContentHash::of(&bytes),
        bytes,
    };
    let error = sampler().sample_group(&GroupInput {
        version: Some(version.clone()),
        ..input(0, 2)
    });
    let error = error.expect_err("two values are no adapter");
    assert!(matches!(error, SampleError::Adapter { .. }));
    assert!(
        error.to_string().contains(&version.hash.to_string()),
        "{error}"
    );
}

/// The other base model's golden pipeline, with classifier-free guidance.
fn qwen_config(true_cfg_scale: f64) -> RunConfig {
    let folder = "../tools/parity/cases/qwen_image_edit_pipeline__sequential_positions/pipeline";
    let mut config = config();
    config.model.path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(folder)
        .display()
        .to_string();
    config.rollout.true_cfg_scale = true_cfg_scale;
    config
}

#[test]
fn groups_of_another_base_model_follow_its_guidance() {
    let sample = |true_cfg_scale: f64| {
        let config = qwen_config(true_cfg_scale);
        let mut sampler = Sampler::load(&config, Device::flex(), &EditorSource::Own)
            .expect("the golden pipeline");
        sampler.sample_group(&input(0, 2)).expect("a group")
    };
    let (plain, guided, again) = (sample(1.0), sample(3.0), sample(3.0));
    assert_eq!(
        (&guided.x0, &guided.condition),
        (&again.x0, &again.condition)
    );
    assert_ne!(plain.x0, guided.x0);
    let read = |group: &[u8]| Condition::from_bytes(group, &Device::flex()).expect("a condition");
    assert!(read(&plain.condition).negative_prompt.is_none());
    assert!(read(&guided.condition).negative_prompt.is_some());
    assert_eq!(guided.edits[0].dimensions(), (16, 24));
}

#[test]
fn guidance_away_from_the_negative_prompt_works_on_flux_too() {
    let sample = |true_cfg_scale: f64| {
        let mut config = config();
        config.rollout.true_cfg_scale = true_cfg_scale;
        let mut sampler = Sampler::load(&config, Device::flex(), &EditorSource::Own)
            .expect("the golden pipeline");
        sampler.sample_group(&input(0, 2)).expect("a group").x0
    };
    assert_ne!(sample(1.0), sample(2.0));
}
