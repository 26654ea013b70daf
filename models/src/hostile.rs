//! Files and blobs from outside are refused or understood, never worse.

use std::{fs, path::Path};

use burn::tensor::Device;
use retouch_hostile::bombard;

use crate::{
    editor::{Condition, ImageSize, Prompt},
    exchange::{adapter_from_bytes, adapter_to_bytes, latents_from_bytes, latents_to_bytes},
    lora,
    lora::{LoraAdapter, LoraConfig, Projection},
    noise,
    tokenizer::Tokenizer,
    weights::{LoadError, Weights},
};

#[test]
fn latents_and_adapters() {
    let device = Device::flex();
    let valid = latents_to_bytes(noise::normal(1, [2, 3, 4], &device).into_data());
    bombard(&valid, |bytes| {
        let _ = latents_from_bytes(bytes, &device);
    });
    let valid = adapter_to_bytes(&[0.5; 40]);
    bombard(&valid, |bytes| {
        let _ = adapter_from_bytes(bytes, 40);
    });
}

#[test]
fn conditions() {
    let device = Device::flex();
    let prompt = |tokens: usize| Prompt {
        tokens: noise::normal(1, [tokens, 4], &device),
        pooled: Some(noise::normal(2, [5], &device)),
    };
    let condition = Condition {
        prompt: prompt(3),
        negative_prompt: Some(prompt(2)),
        image_latents: noise::normal(3, [6, 7], &device),
        size: ImageSize::square(32),
        source_sizes: vec![ImageSize::square(16), ImageSize::square(8)],
    };
    bombard(&condition.to_bytes(), |bytes| {
        let _ = Condition::from_bytes(bytes, &device);
    });
}

#[test]
fn adapter_folders() {
    let device = Device::flex();
    let projections = [Projection {
        name: "blocks.0.to_q".into(),
        in_features: 3,
        out_features: 2,
    }];
    let config = LoraConfig {
        rank: 2,
        alpha: 4.0,
        target_modules: vec!["to_q".into()],
    };
    let adapter = LoraAdapter::init(&config, &projections, 1, &device);
    let folder = tempfile::tempdir().unwrap();
    lora::save_peft(folder.path(), &adapter, &config, &projections).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        with_hostile_file(&folder.path().join(file), || {
            let _ = lora::load_adapter(folder.path(), &projections, &device);
        });
    }
    lora::save_diffusers(folder.path(), &adapter, &config, &projections).unwrap();
    let file = folder.path().join("pytorch_lora_weights.safetensors");
    with_hostile_file(&file, || {
        let _ = lora::load_adapter(&file, &projections, &device);
    });
}

#[test]
fn tokenizers() {
    let folder = tempfile::tempdir().unwrap();
    let json = r###"{"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 3, "content": "<end>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "vocab": {"a": 0, "b": 1, "ab": 2, "<end>": 3},
            "merges": [["a", "b"]]}}"###;
    let config = r#"{"model_max_length": 16, "pad_token": {"content": "<end>"}}"#;
    fs::write(folder.path().join("tokenizer.json"), json).unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    let good = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(good.encode_padded("AB b", 4).unwrap(), [2, 1, 3, 3]);
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        with_hostile_file(&folder.path().join(file), || {
            if let Ok(tokenizer) = Tokenizer::load(folder.path()) {
                let _ = tokenizer.encode_padded("ab a <end>", 8);
            }
        });
    }
}

#[test]
fn shard_indices_stay_in_their_folder() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret.safetensors");
    fs::write(
        &secret,
        latents_to_bytes(noise::normal(1, [1, 1, 1], &Device::flex()).into_data()),
    )
    .unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for shard in ["../secret.safetensors", secret.to_str().unwrap(), "..", ""] {
        let index = format!(r#"{{"weight_map": {{"x0": {shard:?}}}}}"#);
        fs::write(model.join("model.safetensors.index.json"), index).unwrap();
        let error: LoadError = Weights::from_folder(&model).err().unwrap();
        assert!(
            error.to_string().contains("is not the name of a file"),
            "{shard}: {error}"
        );
    }
}

/// Calls `read` with many versions of a file that is good now.
fn with_hostile_file(path: &Path, read: impl Fn()) {
    let valid = fs::read(path).unwrap();
    bombard(&valid, |bytes| {
        fs::write(path, bytes).unwrap();
        read();
    });
    fs::write(path, valid).unwrap();
}
