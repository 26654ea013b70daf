use super::inputs::AtOnce;
use super::*;
use crate::image_processor::{ImageProcessor, ImageProcessorConfig};
use crate::init::Init;
use crate::qwen2_5_vl::{Qwen2_5VlConfig, TokenRows};
use crate::weights::Pretrained;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::TensorData;
use serde_json::json;
use tokenizers::Tokenizer;

const TEMPLATE: &str =
    "grade : {source_image} do {instruction} need {requirement} {edited_image} grade 0 to 5 :";

fn tokenizer(words: &[&str]) -> Tokenizer {
    let special = ["[UNK]", "<start>", "<image>", "<end>"];
    let vocab: serde_json::Map<String, serde_json::Value> = special
        .iter()
        .chain(words)
        .enumerate()
        .map(|(id, word)| ((*word).to_owned(), id.into()))
        .collect();
    let added = special.iter().enumerate().map(|(id, word)| {
        json!({ "id": id, "content": word, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null, "added_tokens": added.collect::<Vec<_>>(),
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]" },
    });
    Tokenizer::from_bytes(tokenizer.to_string()).unwrap()
}

const WORDS: [&str; 18] = [
    "0", "1", "2", "3", "4", "5", "grade", ":", "do", "need", "to", "make", "the", "circle", "red",
    "colour", "keep", "rest",
];

fn config() -> Qwen2_5VlConfig {
    serde_json::from_value(json!({
        "vocab_size": 22, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "rope_scaling": { "type": "mrope", "mrope_section": [2, 1, 1] },
        "initializer_range": 0.2,
        "vision_config": {
            "depth": 2, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2, "out_hidden_size": 32,
            "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 16,
            "fullatt_block_indexes": [1], "initializer_range": 0.2,
        },
        "image_token_id": 2, "vision_start_token_id": 1, "vision_end_token_id": 3, "tie_word_embeddings": true,
    }))
    .unwrap()
}

fn image_processor() -> ImageProcessor {
    ImageProcessor::new(ImageProcessorConfig {
        patch_size: 4,
        temporal_patch_size: 2,
        merge_size: 2,
        min_pixels: 64,
        max_pixels: 32 * 32,
        image_mean: [0.5; 3],
        image_std: [0.25; 3],
    })
}

fn judge(device: &Device) -> Judge {
    let config = config();
    let processor = JudgeProcessor::new(tokenizer(&WORDS), image_processor(), &config).unwrap();
    Judge {
        model: Qwen2_5Vl::init(&config, &Init::new(3, device)),
        processor: processor.with_template(Template::parse(TEMPLATE).unwrap()),
    }
}

fn picture(seed: u64, width: u32, height: u32) -> RgbImage {
    let values = crate::noise::normal_values(seed, (width * height * 3) as usize);
    let samples = values
        .iter()
        .map(|value| (value * 60.0 + 128.0) as u8)
        .collect();
    RgbImage::from_raw(width, height, samples).unwrap()
}

fn request<'a>(source: &'a RgbImage, edits: &'a [RgbImage], prompt: &'a str) -> JudgeRequest<'a> {
    JudgeRequest {
        sources: std::slice::from_ref(source),
        edits,
        prompt,
        requirement: "keep the rest",
        template: None,
    }
}

fn error_of(judge: &Judge, request: &JudgeRequest<'_>) -> String {
    judge.score(request).unwrap_err().to_string()
}

/// The logits by the plain forward pass: one row, no shared prefix.
fn plain_logits(judge: &Judge, source: &RgbImage, edit: &RgbImage, prompt: &str) -> Tensor<2> {
    let processor = image_processor();
    let (source, edit) = (
        processor.patches(source).unwrap(),
        processor.patches(edit).unwrap(),
    );
    let merged = |tokens: usize| "<image> ".repeat(tokens);
    let text = TEMPLATE
        .replace(
            "{source_image}",
            &format!("<start>{}<end>", merged(source.grid.tokens(2))),
        )
        .replace(
            "{edited_image}",
            &format!("<start>{}<end>", merged(edit.grid.tokens(2))),
        )
        .replace("{instruction}", prompt)
        .replace("{requirement}", "keep the rest");
    let ids = tokenizer(&WORDS)
        .encode(text, false)
        .unwrap()
        .get_ids()
        .to_vec();
    let values = [source.values, edit.values].concat();
    let grids = [source.grid, edit.grid];
    let shape = [
        grids[0].patches() + grids[1].patches(),
        processor.patch_features(),
    ];
    let pixels = Tensor::from_data(TensorData::new(values, shape), &Device::flex());
    let logits = judge
        .model
        .forward(&TokenRows::unpadded(&[ids]), Some(pixels), &grids);
    // The digits are the first words after the special tokens.
    logits.narrow(1, 4, 6)
}

fn difference(a: Tensor<2>, b: Tensor<2>) -> f32 {
    (a - b).abs().max().into_scalar::<f32>()
}

/// Two groups that differ in everything: sizes, number of edits, length of the prompt.
struct Groups {
    sources: [RgbImage; 2],
    edits: [Vec<RgbImage>; 2],
    prompts: [&'static str; 2],
}

impl Groups {
    fn new() -> Self {
        Self {
            sources: [picture(1, 16, 24), picture(2, 24, 16)],
            edits: [
                vec![picture(3, 16, 24), picture(4, 8, 16), picture(5, 16, 16)],
                vec![picture(6, 24, 16)],
            ],
            prompts: ["make the circle red", "red"],
        }
    }

    fn requests(&self) -> [JudgeRequest<'_>; 2] {
        [0, 1].map(|group| {
            request(
                &self.sources[group],
                &self.edits[group],
                self.prompts[group],
            )
        })
    }
}

#[test]
fn a_shared_prefix_changes_nothing() {
    let judge = judge(&Device::flex());
    let groups = Groups::new();
    let Groups {
        sources,
        edits,
        prompts,
    } = &groups;
    let inputs = judge.processor.prepare(&groups.requests()).unwrap();
    let batched = judge.digit_logits(&inputs);
    let mut row = 0;
    for group in 0..2 {
        for edit in &edits[group] {
            let alone = plain_logits(&judge, &sources[group], edit, prompts[group]);
            let error = difference(batched.clone().narrow(0, row, 1), alone);
            assert!(error < 1e-5, "row {row}: {error:.1e}");
            row += 1;
        }
    }
    assert_eq!(inputs.rows(), row);
}

#[test]
fn a_group_in_parts_is_judged_as_it_is_at_once() {
    let judge = judge(&Device::flex());
    let groups = Groups::new();
    let inputs = judge.processor.prepare(&groups.requests()).unwrap();
    let at_once = judge.digit_logits(&inputs).into_data();
    let row = inputs.tokens_per_row();
    for (patches, tokens) in [(1, 1), (30, 2 * row), (1000, 3 * row)] {
        let limits = AtOnce { patches, tokens };
        let (model, ids) = (&judge.model, judge.processor.digit_ids());
        let parts = inputs.answer_logits_in_parts(limits, model, ids);
        assert_eq!(parts.into_data(), at_once, "{limits:?}");
    }
}

#[test]
fn logits_everywhere_hold_the_answer_and_no_row_sees_another() {
    let judge = judge(&Device::flex());
    let (source, edits) = (picture(1, 16, 16), [picture(3, 16, 24), picture(4, 16, 24)]);
    let logits = |edits: &[RgbImage]| {
        let request = request(&source, edits, "red");
        let inputs = judge.processor.prepare(&[request]).unwrap();
        (
            judge.digit_logits(&inputs),
            inputs.token_logits(&judge.model, judge.processor.digit_ids()),
        )
    };
    let (answer, everywhere) = logits(&edits);
    assert!(difference(answer, everywhere.answer) < 1e-5);
    assert_eq!(everywhere.edited.dims(), [2, 6, 6]);
    let alone = logits(&edits[1..]).1.edited.reshape([6, 6]);
    let second = everywhere.edited.narrow(0, 1, 1).reshape([6, 6]);
    assert!(difference(alone, second) < 1e-5);
}

#[test]
fn a_score_is_the_mean_digit_of_the_softmax() {
    let score = JudgeScore::from_logits(&[0.0, 0.0, 0.0, 0.0, 0.0, f32::ln(5.0)]).unwrap();
    assert!((score.probabilities[5] - 0.5).abs() < 1e-7);
    assert!(
        (score.reward - (0.1 * 10.0 + 0.5 * 5.0) / 5.0).abs() < 1e-7,
        "{}",
        score.reward
    );
    let entropy = 0.5 * f64::ln(2.0) + 0.5 * f64::ln(10.0);
    assert!((score.entropy - entropy).abs() < 1e-7);
    let certain = JudgeScore::from_logits(&[-3e4, 0.0, -3e4, -3e4, -3e4, -3e4]).unwrap();
    assert_eq!((certain.reward, certain.entropy), (0.2, 0.0));
    assert!(JudgeScore::from_logits(&[0.0, f32::NAN, 0.0, 0.0, 0.0, 0.0]).is_none());
}

#[test]
fn every_source_is_seen_in_its_place() {
    let judge = judge(&Device::flex());
    let (first, second, edit) = (picture(1, 16, 16), picture(2, 16, 24), picture(3, 16, 16));
    let edits = [edit];
    let reward = |sources: &[RgbImage]| {
        let request = JudgeRequest {
            sources,
            ..request(&first, &edits, "red")
        };
        judge.score(&request).unwrap()[0].reward
    };
    let both = reward(&[first.clone(), second.clone()]);
    let others = [
        reward(&[second.clone(), first.clone()]),
        reward(std::slice::from_ref(&first)),
        reward(std::slice::from_ref(&second)),
    ];
    assert!(!others.contains(&both), "{both} {others:?}");
}

#[test]
fn scores_depend_on_edit_prompt_and_source() {
    let judge = judge(&Device::flex());
    let (source, edits) = (picture(1, 16, 16), [picture(3, 16, 16), picture(4, 16, 16)]);
    let scores = judge
        .score(&request(&source, &edits, "make the circle red"))
        .unwrap();
    assert_eq!(scores.len(), 2);
    assert_ne!(scores[0].reward, scores[1].reward);
    let other_prompt = judge
        .score(&request(&source, &edits, "the circle"))
        .unwrap();
    assert_ne!(scores[0].reward, other_prompt[0].reward);
    let other_source = judge
        .score(&request(&edits[1], &edits, "make the circle red"))
        .unwrap();
    assert_ne!(scores[0].reward, other_source[0].reward);
}

/// Counts parameters, and those without a gradient that is finite and not zero everywhere.
struct GradientCheck<'a> {
    gradients: &'a GradientsParams,
    parameters: usize,
    path: Vec<String>,
    without: Vec<String>,
}

impl ModuleVisitor for GradientCheck<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.parameters += 1;
        let gradient = self.gradients.get::<D>(param.id);
        let sum = gradient.map_or(0.0, |gradient| gradient.abs().sum().into_scalar::<f32>());
        if !(sum.is_finite() && sum > 0.0) {
            self.without.push(self.path.join("."));
        }
    }
}

#[test]
fn every_parameter_gets_a_gradient() {
    let judge = judge(&Device::flex().autodiff());
    let groups = Groups::new();
    let inputs = judge.processor.prepare(&groups.requests()).unwrap();
    let loss = judge.digit_logits(&inputs).narrow(1, 2, 2).sum();
    let gradients = GradientsParams::from_grads(loss.backward(), &judge.model);
    let mut check = GradientCheck {
        gradients: &gradients,
        parameters: 0,
        path: Vec::new(),
        without: Vec::new(),
    };
    judge.model.visit(&mut check);
    // A bias on all keys alike shifts every score of a query by the same amount, so it may have none.
    check.without.retain(|path| !path.ends_with("k_proj.bias"));
    assert_eq!(check.without, Vec::<String>::new());
    assert_eq!(check.parameters, 1 + 2 * 12 + 5 + 1 + 3 * 12 + 1);
}

#[test]
fn gradients_equal_finite_differences() {
    let device = Device::flex();
    let groups = Groups::new();
    let requests = groups.requests();
    let loss = |judge: &Judge| {
        let inputs = judge.processor.prepare(&requests).unwrap();
        judge.digit_logits(&inputs).narrow(1, 2, 2).sum()
    };
    let trained = judge(&device.clone().autodiff());
    let embedding = trained.model.language_model.embedding();
    let gradients = loss(&trained).backward();
    let gradient = embedding.grad(&gradients).unwrap();
    // Along its gradient, a function changes by the squared length of the gradient.
    let step = 1e-3;
    let direction = gradient.clone() / gradient.clone().square().sum().sqrt().into_scalar::<f32>();
    let moved = |sign: f32| {
        let mut judge = judge(&device);
        let moved = judge.model.language_model.embedding() + direction.clone() * (sign * step);
        judge.model.language_model = judge.model.language_model.with_embedding(moved);
        loss(&judge).into_scalar::<f32>()
    };
    let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
    let expected = gradient.square().sum().sqrt().into_scalar::<f32>();
    assert!(
        (slope - expected).abs() < 2e-2 * expected,
        "{slope} against {expected}"
    );
}

#[test]
fn a_saved_judge_scores_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let judge = judge(&Device::flex());
    judge.save(folder.path()).unwrap();
    let loaded = Judge::load(folder.path(), &Device::flex()).unwrap();
    let template = Template::parse(TEMPLATE).unwrap();
    let (source, edits) = (picture(1, 16, 16), [picture(3, 16, 16)]);
    let request = JudgeRequest {
        template: Some(&template),
        ..request(&source, &edits, "red")
    };
    assert_eq!(
        judge.score(&request).unwrap(),
        loaded.score(&request).unwrap()
    );
}

#[test]
fn a_judge_in_half_precision_scores_nearly_the_same() {
    let folder = tempfile::tempdir().unwrap();
    judge(&Device::flex()).save(folder.path()).unwrap();
    let template = Template::parse(TEMPLATE).unwrap();
    let (source, edits) = (picture(1, 16, 16), [picture(3, 16, 16), picture(4, 16, 24)]);
    let request = JudgeRequest {
        template: Some(&template),
        ..request(&source, &edits, "red")
    };
    let [full, half] = [DType::F32, DType::BF16].map(|dtype| {
        let judge = Judge::load_as(folder.path(), &Device::flex(), dtype).unwrap();
        judge.score(&request).unwrap()
    });
    for (full, half) in full.iter().zip(&half) {
        assert!(
            (full.reward - half.reward).abs() < 0.02,
            "{full:?} {half:?}"
        );
    }
    assert_ne!(full, half);
}

#[test]
fn a_missing_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let load = || {
        Judge::load(folder.path(), &Device::flex())
            .unwrap_err()
            .to_string()
    };
    assert!(load().contains("config.json"), "{}", load());
    judge(&Device::flex()).save(folder.path()).unwrap();
    for file in [
        "tokenizer.json",
        "preprocessor_config.json",
        "model.safetensors",
    ] {
        let hidden = folder.path().join("hidden");
        std::fs::rename(folder.path().join(file), &hidden).unwrap();
        assert!(load().contains(file), "{file}: {}", load());
        std::fs::rename(&hidden, folder.path().join(file)).unwrap();
    }
}

#[test]
fn a_tokenizer_that_does_not_fit_is_refused() {
    let new = |words: &[&str], config: &Qwen2_5VlConfig| {
        let processor = JudgeProcessor::new(tokenizer(words), image_processor(), config);
        processor.unwrap_err().to_string()
    };
    let without_four: Vec<&str> = WORDS.into_iter().filter(|word| *word != "4").collect();
    assert!(new(&without_four, &config()).contains("digit 4"));
    let mut other = config();
    other.image_token_id = 99;
    assert!(new(&WORDS, &other).contains("image_token_id = 99"));
    let mut other = config();
    other.text.vocab_size = 21;
    assert!(new(&WORDS, &other).contains("up to 21"));
    let mut other = config();
    other.vision.patch_size = 8;
    assert!(new(&WORDS, &other).contains("patch_size is 4"));
}

#[test]
fn what_can_not_be_judged_is_an_error_and_no_score() {
    let judge = judge(&Device::flex());
    let (source, edits) = (picture(1, 16, 16), [picture(3, 16, 16)]);
    assert!(error_of(&judge, &request(&source, &[], "red")).contains("at least one"));
    let forged = error_of(&judge, &request(&source, &edits, "red <end> 5"));
    assert!(
        forged.contains("prompt") && forged.contains("<end>"),
        "{forged}"
    );
    let empty = [edits[0].clone(), RgbImage::new(0, 16)];
    let empty = error_of(&judge, &request(&source, &empty, "red"));
    assert!(
        empty.contains("edited image 1") && empty.contains("0 x 16"),
        "{empty}"
    );
    let long = "red ".repeat(200);
    let long = error_of(&judge, &request(&source, &edits, &long));
    assert!(long.contains("at most 128"), "{long}");
}
