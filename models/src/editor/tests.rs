use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use image::RgbImage;

use super::*;
use crate::golden::Case;
use crate::init::Init;
use crate::lora::{LoraAdapter, LoraConfig, flat_len};
use crate::noise;
use crate::solver::Solver;
use crate::t5::{T5Config, T5Encoder};
use crate::weights::Pretrained;

fn number<T: std::str::FromStr>(case: &Case, key: &str) -> T {
    case.parameter(key)
        .parse()
        .ok()
        .unwrap_or_else(|| panic!("{key} is no number"))
}

fn text(case: &Case, key: &str) -> String {
    serde_json::from_str(&case.parameter(key)).unwrap()
}

fn editor(case: &Case, parts: Parts) -> Editor {
    Editor::load(&case.path("pipeline"), &Device::flex(), parts).unwrap()
}

fn picture(case: &Case) -> RgbImage {
    let shape = case.shape("in.image");
    let bytes = case
        .integers("in.image")
        .into_iter()
        .map(|byte| byte as u8)
        .collect();
    RgbImage::from_raw(shape[1] as u32, shape[0] as u32, bytes).unwrap()
}

fn condition(case: &Case, editor: &Editor) -> Condition {
    let asked = ImageSize {
        height: number(case, "height"),
        width: number(case, "width"),
    };
    let size = output_size(
        asked,
        number(case, "max_area"),
        editor.latent_format().unit(),
    );
    let source_size = match case.parameter("auto_resize").as_str() {
        "true" => SourceSize::Preferred,
        _ => SourceSize::Own,
    };
    let (prompt, length) = (text(case, "prompt"), number(case, "max_sequence_length"));
    editor
        .encode_request(&EditRequest {
            prompt: &prompt,
            negative_prompt: None,
            sources: &[picture(case)],
            source_size,
            size,
            max_sequence_length: length,
        })
        .unwrap()
}

fn options(case: &Case) -> SampleOptions {
    SampleOptions {
        num_inference_steps: number(case, "num_inference_steps"),
        solver: text(case, "solver").parse().unwrap(),
        guidance_scale: number(case, "guidance_scale"),
        true_cfg_scale: 1.0,
    }
}

#[test]
fn the_pipeline_equals_the_reference() {
    for case in Case::all("kontext_pipeline") {
        let editor = editor(&case, Parts::All);
        let condition = condition(&case, &editor);
        let x0 = editor
            .sample(&condition, case.tensor("in.latents"), &options(&case), None)
            .unwrap();
        case.check("out.latents", x0.clone(), 1e-3);
        let pixels = editor.decode_pixels(x0, &condition).unwrap();
        case.check(
            "out.image",
            pixels.squeeze_dim::<3>(0).permute([1, 2, 0]),
            1e-3,
        );
    }
}

/// The smallest of the pipelines, and a condition of it.
fn small() -> (Case, Editor, Condition) {
    let case = Case::all("kontext_pipeline").swap_remove(1);
    let editor = editor(&case, Parts::All);
    let size = ImageSize {
        height: 8,
        width: 12,
    };
    let condition = editor
        .encode("make it red", &picture(&case), size, 7)
        .unwrap();
    (case, editor, condition)
}

fn largest<const D: usize>(x: Tensor<D>) -> f32 {
    x.abs().max().into_scalar()
}

#[test]
fn a_condition_serves_a_batch_as_it_serves_each_sample() {
    let (_, editor, condition) = small();
    let [tokens, channels] = editor.latent_shape(condition.size);
    let device = Device::flex();
    let x = noise::normal(1, [3, tokens, channels], &device);
    let t = Tensor::from_floats([0.9, 0.5, 0.1], &device);
    let all = editor.velocity(x.clone(), t.clone(), &condition, 2.5, None);
    for i in 0..3 {
        let (x, t) = (x.clone().narrow(0, i, 1), t.clone().narrow(0, i, 1));
        let one = editor.velocity(x, t, &condition, 2.5, None);
        assert!(largest(all.clone().narrow(0, i, 1) - one) < 1e-5);
    }
    let prepared = editor.prepare(&[&condition, &condition, &condition], 2.5);
    let each = editor.velocity_of(x, t, &prepared, None);
    assert!(largest(each - all) < 1e-5);
}

/// Sampled in parts of any size, samples have the bits that they have all together (A9).
#[test]
fn no_sample_depends_on_what_is_sampled_beside_it() {
    let device = Device::flex();
    let cases =
        ["kontext_pipeline", "qwen_image_edit_pipeline"].map(|kind| Case::all(kind).remove(1));
    for (case, dtype) in cases
        .iter()
        .flat_map(|case| [DType::F32, DType::BF16].map(|d| (case, d)))
    {
        let folder = case.path("pipeline");
        let editor = Editor::load_as(&folder, &device, Parts::Transformer, dtype).unwrap();
        let unit = editor.latent_format().unit();
        let shape = ConditionShape {
            size: ImageSize {
                height: 2 * unit,
                width: 3 * unit,
            },
            sources: 1,
            max_sequence_length: 5,
        };
        let condition = editor.random_condition(shape, 1);
        let config = LoraConfig {
            rank: 2,
            alpha: 4.0,
            target_modules: vec!["to_q".into(), "to_out.0".into()],
        };
        let projections = editor.projections();
        let flat = noise::normal_values(3, flat_len(&config, projections));
        let adapter = LoraAdapter::from_flat(&config, projections, &flat, &device);
        let options = SampleOptions {
            num_inference_steps: 3,
            solver: Solver::Dpm2,
            guidance_scale: 2.5,
            true_cfg_scale: 1.0,
        };
        let [tokens, channels] = editor.latent_shape(condition.size);
        let noise = noise::normal(2, [5, tokens, channels], &device);
        let sample = |at_once| {
            let noise = noise.clone();
            editor.sample_in_parts(at_once, &condition, noise, &options, Some(&adapter))
        };
        let whole = sample(5).unwrap();
        for at_once in 1..5 {
            let parts = sample(at_once).unwrap();
            assert_eq!(parts.into_data(), whole.to_data(), "{at_once} of {dtype:?}");
        }
        let all = editor.sample(&condition, noise.clone(), &options, Some(&adapter));
        assert_eq!(all.unwrap().into_data(), whole.into_data());
        assert_eq!(
            editor.samples_at_once(&condition),
            editor.samples_at_once_of(shape)
        );
    }
}

/// A group of 12 goes through FLUX.1-Kontext at once at 512 x 512 pixels, and in four parts at a megapixel.
#[test]
fn what_is_worth_sampling_at_once_is_bounded_by_tokens() {
    let (_, editor, _) = small();
    let tokens_of = |size, max_sequence_length| {
        let shape = ConditionShape {
            size,
            sources: 1,
            max_sequence_length,
        };
        editor.samples_at_once_of(shape)
    };
    let unit = editor.latent_format().unit();
    let square = |side: usize| ImageSize::square(side * unit);
    assert_eq!(tokens_of(square(32), 512), 12);
    assert_eq!(tokens_of(square(64), 512), 3);
    assert_eq!(tokens_of(square(1000), 512), 1);
}

#[test]
fn edits_of_several_conditions_are_those_of_each() {
    let device = Device::flex();
    for kind in ["kontext_pipeline", "qwen_image_edit_pipeline"] {
        let case = Case::all(kind).remove(1);
        let editor = editor(&case, Parts::All);
        let unit = editor.latent_format().unit();
        let size = ImageSize {
            height: 2 * unit,
            width: 3 * unit,
        };
        let (width, height) = (size.width as u32, size.height as u32);
        let sources =
            [20, 200].map(|red| RgbImage::from_pixel(width, height, image::Rgb([red, 9, 80])));
        let encode = |(prompt, source): (&str, &RgbImage)| {
            let request = EditRequest {
                prompt,
                negative_prompt: Some(" "),
                sources: std::slice::from_ref(source),
                source_size: SourceSize::Result,
                size,
                max_sequence_length: 7,
            };
            editor.encode_request(&request).unwrap()
        };
        let conditions = [("add a red dot", &sources[0]), ("remove it", &sources[1])].map(encode);
        let options = SampleOptions {
            num_inference_steps: 2,
            solver: Solver::Euler,
            guidance_scale: 2.5,
            true_cfg_scale: 2.0,
        };
        let [tokens, channels] = editor.latent_shape(size);
        let noise = noise::normal(2, [2, tokens, channels], &device);
        let together = editor.sample_each(&conditions.each_ref(), noise.clone(), &options, None);
        let together = together.unwrap();
        for (row, condition) in conditions.iter().enumerate() {
            let noise = noise.clone().narrow(0, row, 1);
            let alone = editor.sample(condition, noise, &options, None).unwrap();
            let error = largest(alone - together.clone().narrow(0, row, 1));
            assert!(error < 1e-4, "{kind}, {row}: {error}");
        }
        let apart = largest(together.clone().narrow(0, 0, 1) - together.narrow(0, 1, 1));
        assert!(apart > 1e-2, "the conditions make no difference");
    }
}

#[test]
fn a_learner_needs_only_the_transformer_and_the_bytes_of_a_condition() {
    let (case, whole, condition) = small();
    let device = Device::flex();
    let learner = editor(&case, Parts::Transformer);
    let received = Condition::from_bytes(&condition.to_bytes(), &device).unwrap();
    let [tokens, channels] = learner.latent_shape(received.size);
    let x = noise::normal(1, [2, tokens, channels], &device);
    let t = Tensor::from_floats([0.9, 0.5], &device);
    let there = whole.velocity(x.clone(), t.clone(), &condition, 1.0, None);
    let here = learner.velocity(x.clone(), t, &received, 1.0, None);
    assert_eq!(here.into_data(), there.into_data());
    assert!(matches!(
        learner.decode(x, &received),
        Err(EditError::NoEncoders)
    ));
}

#[test]
fn gradients_reach_the_adapter_alone_and_sampling_makes_none() {
    let (_, editor, condition) = small();
    let config = LoraConfig {
        rank: 2,
        alpha: 4.0,
        target_modules: vec!["to_q".into(), "to_out.0".into()],
    };
    let device = Device::flex().autodiff();
    let projections = editor.projections();
    let flat = noise::normal_values(3, flat_len(&config, projections));
    let adapter = LoraAdapter::from_flat(&config, projections, &flat, &device);
    let [tokens, channels] = editor.latent_shape(condition.size);
    let x = noise::normal(1, [2, tokens, channels], &Device::flex());
    let t = Tensor::from_floats([0.9, 0.5], &Device::flex());
    let velocity = editor.velocity(x.clone(), t, &condition, 1.0, Some(&adapter));
    let gradients = velocity.square().mean().backward();
    let flat = adapter.flat_gradients(&gradients);
    assert!(
        flat.iter().all(|g| g.is_finite())
            && flat.iter().filter(|g| **g != 0.0).count() > flat.len() / 2
    );

    let options = SampleOptions {
        num_inference_steps: 2,
        solver: Solver::Dpm2,
        guidance_scale: 1.0,
        true_cfg_scale: 1.0,
    };
    let x0 = editor
        .sample(&condition, x.clone(), &options, Some(&adapter))
        .unwrap();
    assert!(!x0.is_autodiff());
    let plain = editor
        .sample(&condition, x, &options, Some(&adapter.valid()))
        .unwrap();
    assert_eq!(x0.into_data(), plain.into_data());
}

#[test]
fn a_saved_editor_edits_as_before() {
    let (_, editor, condition) = small();
    let folder = tempfile::tempdir().unwrap();
    editor.save(folder.path()).unwrap();
    let loaded = Editor::load(folder.path(), &Device::flex(), Parts::All).unwrap();
    let [tokens, channels] = editor.latent_shape(condition.size);
    let noise = noise::normal(1, [2, tokens, channels], &Device::flex());
    let options = SampleOptions {
        num_inference_steps: 2,
        solver: Solver::Euler,
        guidance_scale: 1.0,
        true_cfg_scale: 1.0,
    };
    let edit = |editor: &Editor| {
        let source = RgbImage::from_fn(20, 16, |x, y| image::Rgb([x as u8 * 9, y as u8 * 9, 80]));
        let condition = editor
            .encode("add a star", &source, condition.size, 7)
            .unwrap();
        editor
            .decode(
                editor
                    .sample(&condition, noise.clone(), &options, None)
                    .unwrap(),
                &condition,
            )
            .unwrap()
    };
    let images = edit(&loaded);
    assert_eq!(
        (images.len(), images[0].width(), images[0].height()),
        (2, 12, 8)
    );
    assert_eq!(images, edit(&editor));
}

#[test]
fn sizes_that_do_not_divide_several_sources_and_other_pipelines_are_clear_errors() {
    let (case, editor, _) = small();
    let size = ImageSize {
        height: 10,
        width: 12,
    };
    let error = editor
        .encode("", &picture(&case), size, 7)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "the size 10 x 12 is not a multiple of 4 pixels in both directions"
    );

    let pictures = [picture(&case), picture(&case)];
    let request = EditRequest {
        prompt: "",
        negative_prompt: None,
        sources: &pictures,
        source_size: SourceSize::Result,
        size: ImageSize::square(8),
        max_sequence_length: 7,
    };
    let error = editor.encode_request(&request).unwrap_err().to_string();
    assert_eq!(
        error,
        "2 source images, a FluxKontextPipeline takes one only"
    );

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("model_index.json"),
        r#"{"_class_name": "FluxPipeline"}"#,
    )
    .unwrap();
    let error = Editor::load(folder.path(), &Device::flex(), Parts::All)
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with(
            "_class_name = FluxPipeline is not supported; supported: FluxKontextPipeline, QwenImageEditPlusPipeline"
        )
    );
}

#[test]
fn parts_that_do_not_fit_each_other_are_named() {
    let (_, editor, _) = small();
    let folder = tempfile::tempdir().unwrap();
    editor.save(folder.path()).unwrap();
    let config = T5Config {
        vocab_size: 10,
        num_layers: 1,
        ..Default::default()
    };
    let other = T5Encoder::init(&config, &Init::new(1, &Device::flex()));
    other.save(&folder.path().join("text_encoder_2")).unwrap();
    let load = |parts| Editor::load(folder.path(), &Device::flex(), parts);
    let error = load(Parts::All).unwrap_err().to_string();
    let expected = "joint_attention_dim = 24 is not supported; supported: text_encoder_2/config.json's d_model";
    assert!(error.ends_with(expected), "{error}");
    assert!(load(Parts::Transformer).is_ok());
}
