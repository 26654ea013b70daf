//! The tiny judge in several files, beside others, and broken.

use std::{collections::BTreeMap, fs, path::Path};

use burn::tensor::{Device, TensorData};
use image::{Rgb, RgbImage};
use retouch_models::weights::{TensorMap, Weights, write_safetensors};
use retouch_proto::{
    config::{Dtype, RewardConfig, RewardTerm},
    task::TermScore,
};
use retouch_reward_worker::scorer::{Group, Scored, Scorer};
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

/// All of a judge but its weights.
fn write_configuration(folder: &Path) {
    for file in ["config.json", "preprocessor_config.json", "tokenizer.json"] {
        fs::copy(tiny_judge().join(file), folder.join(file)).expect("a copy");
    }
}

/// The tiny judge with every weight changed.
fn write_changed(folder: &Path, change: fn(f32) -> f32) {
    write_configuration(folder);
    let weights = Weights::from_folder(tiny_judge()).expect("the tiny judge");
    let changed = weights.names().map(|name| {
        let data = weights.data(name).expect("a tensor").convert::<f32>();
        let values = data.iter::<f32>().map(change).collect::<Vec<_>>();
        (
            name.to_owned(),
            TensorData::new(values, data.shape().clone()),
        )
    });
    let file = folder.join("model.safetensors");
    write_safetensors(&file, &changed.collect(), &BTreeMap::new()).expect("a judge");
}

/// The tiny judge under the names that transformers gives to shards and their index. Returns how many there are.
fn write_sharded(folder: &Path) -> usize {
    write_configuration(folder);
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

/// A scorer with a term for each name, folder and weight.
fn load(terms: &[(&str, &Path, f64)]) -> Result<Scorer, String> {
    let template = tiny_judge().join("template.txt");
    let term = |(name, folder, weight): &(&str, &Path, f64)| RewardTerm {
        name: (*name).to_owned(),
        path: folder.display().to_string(),
        template: template.display().to_string(),
        weight: *weight,
        ..RewardTerm::default()
    };
    let config = RewardConfig {
        dtype: Dtype::F32,
        terms: terms.iter().map(term).collect(),
        ..RewardConfig::default()
    };
    Scorer::load(&config, &Device::flex()).map_err(|error| error.to_string())
}

fn picture(shade: u8) -> RgbImage {
    RgbImage::from_fn(64, 64, |x, y| Rgb([shade, 3 * x as u8, 2 * y as u8]))
}

fn group() -> Group {
    Group {
        prompt: "make the circle red".to_owned(),
        requirement: "recolor".to_owned(),
        sources: vec![picture(0)],
        edits: [40, 90, 200].map(picture).to_vec(),
    }
}

fn score(terms: &[(&str, &Path, f64)]) -> Scored {
    load(terms)
        .expect("judges")
        .score(&group())
        .expect("scores")
}

#[test]
fn a_judge_in_shards_gives_the_scores_of_the_judge_in_one_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let count = write_sharded(folder.path());
    assert!(count > 2, "{count} shards");
    let edit = |folder| [("edit", folder, 1.0)];
    let sharded = score(&edit(folder.path()));
    assert_eq!(sharded, score(&edit(tiny_judge())));
    assert_ne!(sharded.scores[0].reward, sharded.scores[2].reward);

    let second = format!("model-00002-of-{count:05}.safetensors");
    fs::remove_file(folder.path().join(&second)).expect("removed");
    let error = load(&edit(folder.path())).expect_err("a shard is missing");
    let expected = format!("1 of its {count} shards are missing: {second}");
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn a_watched_term_is_shown_and_no_part_of_the_reward_even_if_it_fails() {
    let (other, broken) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    write_changed(other.path(), |weight| 0.9 * weight);
    write_changed(broken.path(), |_| f32::NAN);
    let edit = ("edit", tiny_judge(), 1.0);
    let alone = score(&[edit]);
    let both = score(&[
        ("other", other.path(), 0.0),
        edit,
        ("broken", broken.path(), 0.0),
    ]);
    let bits = |scored: &Scored| {
        scored
            .scores
            .iter()
            .map(|s| s.reward.to_bits())
            .collect::<Vec<_>>()
    };
    assert_eq!(bits(&both), bits(&alone));
    for (both, alone) in both.scores.iter().zip(&alone.scores) {
        let names: Vec<&str> = both.terms.iter().map(|term| &term.name[..]).collect();
        assert_eq!(names, ["other", "edit"]);
        let value = |term: &TermScore| term.value;
        assert_ne!(value(&both.terms[0]), value(&alone.terms[0]));
        assert_eq!(both.terms[1], alone.terms[0]);
    }
    assert_eq!(both.unscored[0].term, "broken");
    assert!(
        both.unscored[0].reason.contains("not finite"),
        "{}",
        both.unscored[0].reason
    );

    let counted = load(&[edit, ("broken", broken.path(), 0.5)]).expect("judges");
    let error = counted.score(&group()).expect_err("no reward (A5)");
    assert!(error.is_retryable(), "{error}");
}

#[test]
fn judges_that_rested_score_as_before() {
    let folder = tempfile::tempdir().expect("a folder");
    write_changed(folder.path(), |weight| weight);
    let scorer = load(&[("edit", folder.path(), 1.0)]).expect("judges");
    let before = scorer.score(&group()).expect("scores");
    scorer.rest();
    assert_eq!(scorer.score(&group()).expect("scores"), before);
    scorer.rest();
    fs::remove_file(folder.path().join("model.safetensors")).expect("removed");
    let error = scorer.score(&group()).expect_err("the judge is gone");
    assert!(error.is_retryable(), "{error}");
    let error = error.to_string();
    assert!(
        error.contains("term edit: the judge cannot be loaded again"),
        "{error}"
    );
}
