//! How long a judge of the quickstart's size takes for a group, and for a step of its own training.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Device;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use image::RgbImage;
use retouch_models::image_processor::ImageProcessor;
use retouch_models::init::Init;
use retouch_models::judge::{Judge, JudgeProcessor, JudgeRequest, Template};
use retouch_models::noise;
use retouch_models::qwen2_5_vl::{Qwen2_5Vl, Qwen2_5VlConfig};
use retouch_models::weights::Pretrained;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Edits in a group.
const GROUP_SIZE: usize = 12;
const SIDE: u32 = 64;
const TEMPLATE: &str = "{source_image} {instruction} ; {requirement} {edited_image} grade";
const PROMPT: &str = "replace the red circle on the left by a blue square";
const REQUIREMENT: &str = "the new object stands where the old one was and all else stays";

fn config() -> Qwen2_5VlConfig {
    let config = json!({
        "vocab_size": 64, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "rope_scaling": { "type": "mrope", "mrope_section": [4, 6, 6] },
        "vision_config": {
            "depth": 3, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 128,
            "patch_size": 8, "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 32,
            "fullatt_block_indexes": [2],
        },
        "image_token_id": 2, "vision_start_token_id": 1, "vision_end_token_id": 3, "tie_word_embeddings": true,
    });
    serde_json::from_value(config).expect("a valid configuration")
}

/// One token per word of the prompts.
fn tokenizer() -> Tokenizer {
    let special = ["[UNK]", "<start>", "<image>", "<end>"];
    let digits = ["0", "1", "2", "3", "4", "5"];
    let words = PROMPT
        .split(' ')
        .chain(REQUIREMENT.split(' '))
        .chain([";", "grade"]);
    let mut vocab = serde_json::Map::new();
    for word in special.into_iter().chain(digits).chain(words) {
        let id = vocab.len();
        vocab.entry(word).or_insert_with(|| id.into());
    }
    let added = special.iter().enumerate().map(|(id, content)| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null, "added_tokens": added.collect::<Value>(),
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]" },
    });
    Tokenizer::from_bytes(tokenizer.to_string()).expect("a valid tokenizer")
}

fn judge(device: &Device) -> Judge {
    let config = config();
    let processor = json!({
        "patch_size": 8, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 256, "max_pixels": 4096,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25],
    });
    let processor = serde_json::from_value(processor).expect("a valid configuration");
    let processor = JudgeProcessor::new(tokenizer(), ImageProcessor::new(processor), &config);
    let template = Template::parse(TEMPLATE).expect("a valid template");
    Judge {
        model: Qwen2_5Vl::init(&config, &Init::new(1, device)),
        processor: processor.expect("parts that fit").with_template(template),
    }
}

fn picture(seed: u64) -> RgbImage {
    let values = noise::normal_values(seed, (SIDE * SIDE * 3) as usize);
    let samples = values
        .iter()
        .map(|value| (value * 60.0 + 128.0) as u8)
        .collect();
    RgbImage::from_raw(SIDE, SIDE, samples).expect("as many samples as the size says")
}

fn judge_group(criterion: &mut Criterion) {
    let source = picture(0);
    let edits: Vec<RgbImage> = (1..=GROUP_SIZE as u64).map(picture).collect();
    let request = JudgeRequest {
        sources: &[source],
        edits: &edits,
        prompt: PROMPT,
        requirement: REQUIREMENT,
        template: None,
    };
    let scoring = judge(&Device::flex());
    let training = judge(&Device::flex().autodiff());
    println!("judge: {} parameters", scoring.model.num_params());
    let mut group = criterion.benchmark_group("judge");
    group
        .throughput(Throughput::Elements(GROUP_SIZE as u64))
        .sample_size(20);
    group.bench_function("score a group", |bencher| {
        bencher.iter(|| scoring.score(&request).expect("scores"));
    });
    group.bench_function("gradients of a group", |bencher| {
        bencher.iter(|| {
            let inputs = training.processor.prepare(&[request]).expect("inputs");
            let loss = training.digit_logits(&inputs).square().mean();
            GradientsParams::from_grads(loss.backward(), &training.model)
        });
    });
    group.finish();
}

criterion_group!(benches, judge_group);
criterion_main!(benches);
