use burn::tensor::{Device, Tensor};
use image::RgbImage;

use super::*;
use crate::editor::{
    Base, Condition, EditRequest, Editor, NEGATIVE_PROMPT, Parts, SampleOptions, SourceSize,
};
use crate::golden::Case;
use crate::lora::{LoraAdapter, LoraConfig, flat_len};
use crate::noise;

fn number<T: std::str::FromStr>(case: &Case, key: &str) -> Option<T> {
    let value = case.optional_parameter(key)?;
    Some(
        value
            .parse()
            .ok()
            .unwrap_or_else(|| panic!("{key} is no number")),
    )
}

fn text(case: &Case, key: &str) -> Option<String> {
    let value = case.optional_parameter(key)?;
    Some(serde_json::from_str(&value).unwrap())
}

fn editor(case: &Case, parts: Parts) -> Editor {
    let mut editor = Editor::load(&case.path("pipeline"), &Device::flex(), parts).unwrap();
    let Base::QwenImageEdit(base) = &mut editor.base else {
        panic!("another base model");
    };
    let usual = Areas::default();
    base.pipeline.areas = Areas {
        condition: number(case, "condition_image_area").unwrap_or(usual.condition),
        source: number(case, "source_image_area").unwrap_or(usual.source),
    };
    if text(case, "text_positions").as_deref() == Some("sequential") {
        let encoders = base.encoders.as_mut();
        encoders.into_iter().for_each(|encoders| {
            encoders.text_positions = TextPositions::Sequential;
        });
    }
    editor
}

fn pictures(case: &Case) -> Vec<RgbImage> {
    let names = (0..).map(|index| format!("in.image.{index}"));
    let names = names.take_while(|name| case.has(name));
    let picture = |name: String| {
        let shape = case.shape(&name);
        let bytes = case.integers(&name).into_iter().map(|byte| byte as u8);
        RgbImage::from_raw(shape[1] as u32, shape[0] as u32, bytes.collect()).unwrap()
    };
    names.map(picture).collect()
}

fn options(case: &Case) -> SampleOptions {
    SampleOptions {
        num_inference_steps: number(case, "num_inference_steps").unwrap(),
        solver: text(case, "solver").unwrap().parse().unwrap(),
        guidance_scale: 1.0,
        true_cfg_scale: number(case, "true_cfg_scale").unwrap(),
    }
}

#[test]
fn the_pipeline_equals_the_reference() {
    for case in Case::all("qwen_image_edit_pipeline") {
        let (editor, options) = (editor(&case, Parts::All), options(&case));
        let unit = editor.latent_format().unit();
        let side = |key: &str| number::<usize>(&case, key).unwrap() / unit * unit;
        let negative_prompt = text(&case, "negative_prompt");
        let condition = editor.encode_request(&EditRequest {
            prompt: &text(&case, "prompt").unwrap(),
            negative_prompt: negative_prompt.as_deref(),
            sources: &pictures(&case),
            source_size: SourceSize::Preferred,
            size: ImageSize {
                height: side("height"),
                width: side("width"),
            },
            max_sequence_length: 0,
        });
        let condition = condition.unwrap();
        let x0 = editor
            .sample(&condition, case.tensor("in.latents"), &options, None)
            .unwrap();
        case.check("out.latents", x0.clone(), 1e-3);
        let pixels = editor.decode_pixels(x0, &condition).unwrap();
        let pixels = pixels.squeeze_dim::<3>(0).permute([1, 2, 0]);
        case.check("out.image", pixels, 1e-3);
    }
}

fn small_case() -> Case {
    Case::all("qwen_image_edit_pipeline").swap_remove(1)
}

fn request<'a>(prompt: &'a str, sources: &'a [RgbImage]) -> EditRequest<'a> {
    EditRequest {
        prompt,
        negative_prompt: Some(NEGATIVE_PROMPT),
        sources,
        source_size: SourceSize::Result,
        size: ImageSize {
            height: 16,
            width: 24,
        },
        max_sequence_length: 0,
    }
}

fn condition(editor: &Editor, prompt: &str, sources: usize) -> Condition {
    let pictures = pictures(&small_case());
    let sources: Vec<RgbImage> = pictures.into_iter().cycle().take(sources).collect();
    editor.encode_request(&request(prompt, &sources)).unwrap()
}

fn largest<const D: usize>(x: Tensor<D>) -> f32 {
    x.abs().max().into_scalar()
}

#[test]
fn prompts_of_several_lengths_are_a_batch() {
    let editor = editor(&small_case(), Parts::All);
    let conditions = ["make it red", "a much longer instruction: remove the dot"]
        .map(|prompt| condition(&editor, prompt, 2));
    let [short, long] = [0, 1].map(|i: usize| conditions[i].prompt.tokens.dims()[0]);
    assert!(short < long);
    let [tokens, channels] = editor.latent_shape(conditions[0].size);
    let x = noise::normal(1, [2, tokens, channels], &Device::flex());
    let t = Tensor::from_floats([0.9, 0.5], &Device::flex());
    let prepared = editor.prepare(&[&conditions[0], &conditions[1]], 1.0);
    let both = editor.velocity_of(x.clone(), t.clone(), &prepared, None);
    for (row, condition) in conditions.iter().enumerate() {
        let (x, t) = (x.clone().narrow(0, row, 1), t.clone().narrow(0, row, 1));
        let one = editor.velocity(x, t, condition, 1.0, None);
        let error = largest(both.clone().narrow(0, row, 1) - one.clone());
        assert!(error < 1e-5 * largest(one), "{error}");
    }
}

#[test]
fn a_learner_needs_only_the_transformer_and_the_bytes_of_a_condition() {
    let (case, device) = (small_case(), Device::flex());
    let (whole, learner) = (editor(&case, Parts::All), editor(&case, Parts::Transformer));
    let condition = condition(&whole, "make it red", 3);
    let received = Condition::from_bytes(&condition.to_bytes(), &device).unwrap();
    let [tokens, channels] = learner.latent_shape(received.size);
    let x = noise::normal(1, [2, tokens, channels], &device);
    let t = Tensor::from_floats([0.9, 0.5], &device);
    let config = LoraConfig {
        rank: 2,
        alpha: 4.0,
        target_modules: vec!["to_q".into(), "add_k_proj".into(), "to_out.0".into()],
    };
    let flat = noise::normal_values(3, flat_len(&config, learner.projections()));
    let (projections, training) = (learner.projections(), Device::flex().autodiff());
    let adapter = LoraAdapter::from_flat(&config, projections, &flat, &training);
    let there = whole.velocity(x.clone(), t.clone(), &condition, 1.0, Some(&adapter));
    let here = learner.velocity(x.clone(), t, &received, 1.0, Some(&adapter));
    assert_eq!(here.to_data(), there.into_data());
    let gradients = adapter.flat_gradients(&here.square().mean().backward());
    let reached = gradients.iter().filter(|g| **g != 0.0).count();
    assert!(reached > flat.len() / 2 && gradients.iter().all(|g| g.is_finite()));
    assert!(matches!(
        learner.decode(x, &received),
        Err(EditError::NoEncoders)
    ));
}

#[test]
fn guidance_keeps_the_length_of_every_token() {
    let [plain, negative] = [1, 2].map(|seed: u64| noise::normal(seed, [1, 4, 6], &Device::flex()));
    let guided = QwenImageEditPlusPipeline::guide(plain.clone(), negative, 4.0);
    let length = |x: Tensor<3>| (x.clone() * x).sum_dim(2).sqrt();
    assert!(largest(guided.clone() - plain.clone()) > 0.1);
    assert!(largest(length(guided) - length(plain)) < 1e-5);
}

#[test]
fn a_saved_editor_encodes_as_before() {
    let before = editor(&small_case(), Parts::All);
    let folder = tempfile::tempdir().unwrap();
    before.save(folder.path()).unwrap();
    let after = Editor::load(folder.path(), &Device::flex(), Parts::All).unwrap();
    let encode = |mut editor: Editor| {
        if let Base::QwenImageEdit(base) = &mut editor.base {
            base.pipeline.areas = Areas::default();
            base.encoders.as_mut().unwrap().text_positions = TextPositions::Multimodal;
        }
        condition(&editor, "make it red", 1).to_bytes()
    };
    assert_eq!(encode(after), encode(before));
}

#[test]
fn too_many_images_and_markup_in_a_prompt_are_clear_errors() {
    let editor = editor(&small_case(), Parts::All);
    let picture = pictures(&small_case()).swap_remove(0);
    let error = |prompt: &str, sources: usize| {
        let sources = vec![picture.clone(); sources];
        let error = editor
            .encode_request(&request(prompt, &sources))
            .unwrap_err();
        error.to_string()
    };
    assert_eq!(
        error("", 4),
        "4 source images, a QwenImageEditPlusPipeline takes 1 to 3"
    );
    assert_eq!(
        error("", 0),
        "0 source images, a QwenImageEditPlusPipeline takes 1 to 3"
    );
    assert_eq!(
        error("a <|image_pad|>", 1),
        "the prompt contains <|image_pad|>, which is a control token of the text encoder"
    );
}
