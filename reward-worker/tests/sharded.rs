//! A judge whose weights lie in several files scores as the same judge in one.

use std::{collections::BTreeMap, fs, path::Path};

use burn::tensor::Device;
use image::{Rgb, RgbImage};
use retouch_models::weights::{TensorMap, Weights, write_safetensors};
use retouch_proto::config::{Dtype, RewardConfig, RewardTerm};
use retouch_reward_worker::scorer::{Group, Scorer};
use serde_json::json;

/// Bytes in a shard, unless one tensor alone has more.
const SHARD_SIZE_MAX: usize = 200_000;

fn tiny_judge() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/tiny/judge"))
}

/// The tensors of a file in parts of at most the given size, as `save_pretrained(max_shard_size=...)` deals them out.
fn shards(weights: &Weights) -> Vec<TensorMap> {
    let mut shards = vec![TensorMap::new()];
    let mut size = 0;
    for name in weights.names() {
        let bytes = weights.byte_len(name).expect("a tensor");
        if size > 0 && size + bytes > SHARD_SIZE_MAX {
            shards.push(TensorMap::new());
            size = 0;
        }
        size += bytes;
        let last = shards.last_mut().expect("there is one");
        last.insert(name.to_owned(), weights.data(name).expect("a tensor"));
    }
    shards
}

/// The tiny judge under the names that transformers gives to shards and their index. Returns how many there are.
fn write_sharded(folder: &Path) -> usize {
    for file in ["config.json", "preprocessor_config.json", "tokenizer.json"] {
        fs::copy(tiny_judge().join(file), folder.join(file)).expect("a copy");
    }
    let weights = Weights::from_folder(tiny_judge()).expect("the tiny judge");
    let shards = shards(&weights);
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut weight_map = BTreeMap::new();
    for (index, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        write_safetensors(&folder.join(&file), shard, &metadata).expect("a shard");
        weight_map.extend(shard.keys().map(|name| (name.clone(), file.clone())));
    }
    let total: usize = weights
        .names()
        .filter_map(|name| weights.byte_len(name))
        .sum();
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    let path = folder.join("model.safetensors.index.json");
    fs::write(path, index.to_string()).expect("an index");
    shards.len()
}

fn load(folder: &Path) -> Result<Scorer, String> {
    let template = tiny_judge().join("template.txt");
    let config = RewardConfig {
        dtype: Dtype::F32,
        terms: vec![RewardTerm {
            path: folder.display().to_string(),
            template: template.display().to_string(),
            ..RewardTerm::default()
        }],
        ..RewardConfig::default()
    };
    Scorer::load(&config, &Device::flex()).map_err(|error| error.to_string())
}

fn picture(shade: u8) -> RgbImage {
    RgbImage::from_fn(64, 64, |x, y| Rgb([shade, 3 * x as u8, 2 * y as u8]))
}

#[test]
fn a_judge_in_shards_gives_the_scores_of_the_judge_in_one_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let count = write_sharded(folder.path());
    assert!(count > 2, "{count} shards");
    let group = Group {
        prompt: "make the circle red".to_owned(),
        requirement: "recolor".to_owned(),
        source: picture(0),
        edits: [40, 90, 200].map(picture).to_vec(),
    };
    let scores = |folder: &Path| load(folder).expect("a judge").score(&group);
    let sharded = scores(folder.path()).expect("scores");
    assert_eq!(sharded, scores(tiny_judge()).expect("scores"));
    assert_ne!(sharded[0].reward, sharded[2].reward);

    let second = format!("model-00002-of-{count:05}.safetensors");
    fs::remove_file(folder.path().join(&second)).expect("removed");
    let error = load(folder.path()).expect_err("a shard is missing");
    let expected = format!("1 of its {count} shards are missing: {second}");
    assert!(error.contains(&expected), "{error}");
}
