//! `retouch lora`, and what `retouch edit` makes of its results.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn::tensor::TensorData;
use image::{Rgb, RgbImage};
use retouch_models::editor::Layout;
use retouch_models::noise;
use retouch_models::weights::{TensorMap, Weights, write_safetensors};
use serde_json::{Value, json};

const FLUX: &str = "kontext_pipeline__dpm2_truncated_prompt";
const QWEN: &str = "qwen_image_edit_pipeline__sequential_positions";

fn pipeline(case: &str) -> PathBuf {
    let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/parity/cases");
    Path::new(cases).join(case).join("pipeline")
}

fn retouch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(arguments)
        .output()
        .expect("retouch starts")
}

fn succeed(arguments: &[&str]) -> String {
    let output = retouch(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {message}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refused(arguments: &[&str]) -> String {
    let output = retouch(arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    message
}

/// A path inside of a folder, as a command takes it.
fn inside(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

fn values(rows: usize, columns: usize, seed: u64) -> TensorData {
    let values = noise::normal_values(seed, rows * columns).into_iter();
    TensorData::new(
        values.map(|value| 0.4 * value).collect::<Vec<_>>(),
        [rows, columns],
    )
}

/// The factors of a layer of this shape, and its alpha, as kohya names them.
fn kohya(name: &str, [out_features, in_features]: [usize; 2], rank: usize) -> TensorMap {
    let seed = name.len() as u64;
    [
        (
            format!("{name}.lora_down.weight"),
            values(rank, in_features, seed),
        ),
        (
            format!("{name}.lora_up.weight"),
            values(out_features, rank, seed + 100),
        ),
        (
            format!("{name}.alpha"),
            TensorData::new(vec![rank as f32 / 3.0], Vec::<usize>::new()),
        ),
    ]
    .into()
}

fn projection(layout: &Layout, name: &str) -> [usize; 2] {
    let found = layout.projections.iter().find(|p| p.name == name);
    let found = found.unwrap_or_else(|| panic!("no {name}"));
    [found.out_features, found.in_features]
}

/// A file of kohya for the small FLUX, under the original's names, with layers of two ranks.
fn kohya_file(folder: &Path) -> PathBuf {
    let layout = Layout::read(&pipeline(FLUX)).expect("a layout");
    let [hidden, _] = projection(&layout, "transformer_blocks.0.attn.to_q");
    let mut tensors = kohya(
        "lora_unet_double_blocks_0_img_attn_qkv",
        [3 * hidden, hidden],
        4,
    );
    tensors.extend(kohya(
        "lora_unet_single_blocks_0_linear1",
        [7 * hidden, hidden],
        3,
    ));
    let up = projection(&layout, "transformer_blocks.0.ff.net.0.proj");
    tensors.extend(kohya("lora_unet_double_blocks_0_img_mlp_0", up, 4));
    let path = folder.join("kohya.safetensors");
    write_safetensors(&path, &tensors, &BTreeMap::new()).expect("a written file");
    path
}

/// The first picture's edit.
fn edited(folder: &tempfile::TempDir, model: &str, more: &[&str]) -> RgbImage {
    let source = folder.path().join("source.png");
    let picture = RgbImage::from_fn(24, 16, |x, y| Rgb([9 * x as u8, 5 * y as u8, 80]));
    picture.save(&source).expect("a written picture");
    let (source, output) = (source.display().to_string(), inside(folder, "out.png"));
    let edit = [
        "edit",
        &source,
        "make it red",
        "--num-inference-steps",
        "2",
        "--model",
        model,
        "--output",
        &output,
    ];
    succeed(&[&edit[..], more].concat());
    image::open(&output).expect("an edited picture").to_rgb8()
}

/// Largest difference of two pictures' values.
fn difference(one: &RgbImage, two: &RgbImage) -> u8 {
    assert_eq!(one.dimensions(), two.dimensions());
    let pairs = one.as_raw().iter().zip(two.as_raw());
    pairs
        .map(|(one, two)| one.abs_diff(*two))
        .max()
        .expect("a picture")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = names
        .map(|name| name.into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

#[test]
fn conversion_there_and_back_is_exact_and_changes_no_edit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let kohya = kohya_file(folder.path()).display().to_string();
    let [first, between, last] = ["first", "between", "last"].map(|name| inside(&folder, name));
    let said = succeed(&[
        "lora", "convert", &kohya, "--to", "peft", "--output", &first, "--json",
    ]);
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(
        said,
        json!({"from": "kohya", "to": "peft", "layers": 8, "output": first})
    );
    succeed(&[
        "lora",
        "convert",
        &first,
        "--to",
        "diffusers",
        "--output",
        &between,
    ]);
    let model = pipeline(FLUX).display().to_string();
    let said = succeed(&[
        "lora", "convert", &between, "--to", "peft", "--output", &last, "--model", &model,
    ]);
    assert!(
        said.contains("(peft, 8 layers, read as diffusers)"),
        "{said}"
    );
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let read = |folder: &str| fs::read(Path::new(folder).join(file)).expect("a file");
        assert!(read(&first) == read(&last), "{file}");
    }
    let config = fs::read_to_string(Path::new(&last).join("adapter_config.json")).expect("a file");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    // Four layers of either rank: the smaller is most layers', and each alpha is a third of its rank.
    let scale = |rank: &Value, alpha: &Value| {
        alpha.as_f64().expect("alpha") / rank.as_f64().expect("a rank")
    };
    assert!((scale(&config["r"], &config["lora_alpha"]) - 1.0 / 3.0).abs() < 1e-6);
    assert_eq!(config["rank_pattern"].as_object().expect("a map").len(), 4);
    let edits = [&kohya, &first, &between, &last]
        .map(|adapter| edited(&folder, &model, &["--adapter", adapter]));
    assert!(edits.iter().all(|edit| *edit == edits[0]));
    assert!(difference(&edits[0], &edited(&folder, &model, &[])) > 8);
}

#[test]
fn a_merged_model_edits_as_the_adapter_does() {
    for (case, layer) in [
        (FLUX, None),
        (QWEN, Some("transformer_blocks.0.img_mlp.net.0.proj")),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let model = pipeline(case).display().to_string();
        let adapter = match layer {
            None => kohya_file(folder.path()),
            // Underscores for dots, which the model's own names resolve.
            Some(layer) => {
                let layout = Layout::read(&pipeline(case)).expect("a layout");
                let name = format!("lora_unet_{}", layer.replace('.', "_"));
                let path = folder.path().join("kohya.safetensors");
                let tensors = kohya(&name, projection(&layout, layer), 4);
                write_safetensors(&path, &tensors, &BTreeMap::new()).expect("a written file");
                path
            }
        };
        let adapter = adapter.display().to_string();
        let base = edited(&folder, &model, &[]);
        for (scale, name) in [("1", "whole"), ("-0.5", "half")] {
            let with_adapter = edited(
                &folder,
                &model,
                &["--adapter", &adapter, "--lora-scale", scale],
            );
            assert!(difference(&with_adapter, &base) > 4, "{case} {scale}");
            let merged = inside(&folder, name);
            let merge = [
                "lora", "merge", &adapter, "--model", &model, "--output", &merged,
            ];
            succeed(&[&merge[..], &["--lora-scale", scale]].concat());
            assert!(
                difference(&edited(&folder, &merged, &[]), &with_adapter) <= 1,
                "{case} {scale}"
            );
        }
        let off = edited(
            &folder,
            &model,
            &["--adapter", &adapter, "--lora-scale", "0"],
        );
        assert_eq!(off, base, "{case}");
    }
}

/// A copy of the small FLUX in half precision, its transformer in two shards, with what repositories have beside it.
fn sharded(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    copy(&pipeline(FLUX), &model);
    let transformer = model.join("transformer");
    let weights = Weights::from_folder(&transformer).expect("weights");
    let mut shards = [TensorMap::new(), TensorMap::new()];
    let mut weight_map = serde_json::Map::new();
    let shard_name = |shard: usize| {
        format!(
            "diffusion_pytorch_model-0000{}-of-00002.safetensors",
            shard + 1
        )
    };
    for (i, name) in weights.names().enumerate() {
        let data = weights
            .data_as(name, burn::tensor::DType::BF16)
            .expect("values");
        shards[i % 2].insert(name.to_owned(), data);
        weight_map.insert(name.to_owned(), shard_name(i % 2).into());
    }
    fs::remove_file(transformer.join("diffusion_pytorch_model.safetensors")).expect("removed");
    for (i, tensors) in shards.iter().enumerate() {
        write_safetensors(&transformer.join(shard_name(i)), tensors, &BTreeMap::new())
            .expect("a shard");
    }
    let index = json!({"metadata": {}, "weight_map": weight_map}).to_string();
    let index_name = "diffusion_pytorch_model.safetensors.index.json";
    fs::write(transformer.join(index_name), index).expect("an index");
    fs::write(
        transformer.join("diffusion_pytorch_model.fp16.safetensors"),
        "another set",
    )
    .expect("a file");
    fs::write(model.join("LICENSE.md"), "licence").expect("a file");
    fs::write(model.join("flux1-kontext-dev.safetensors"), "all in one").expect("a file");
    fs::create_dir(model.join(".cache")).expect("a folder");
    model
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(fs::copy(&path, target).expect("a copy")),
        }
    }
}

#[test]
fn shards_and_element_types_stay_and_only_targets_change() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = sharded(folder.path());
    let adapter = kohya_file(folder.path()).display().to_string();
    let (from, to) = (model.display().to_string(), inside(&folder, "merged"));
    let said = succeed(&[
        "lora", "merge", &adapter, "--model", &from, "--output", &to, "--json",
    ]);
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(
        (&said["layers"], &said["from"]),
        (&json!(8), &json!("kohya"))
    );
    let merged = Path::new(&to);
    let mut expected = names(&model);
    expected.retain(|name| name != ".cache" && name != "flux1-kontext-dev.safetensors");
    assert_eq!(names(merged), expected);
    let mut expected = names(&model.join("transformer"));
    expected.retain(|name| name != "diffusion_pytorch_model.fp16.safetensors");
    assert_eq!(names(&merged.join("transformer")), expected);
    assert_eq!(
        names(folder.path()),
        ["kohya.safetensors", "merged", "model"]
    );
    let open = |model: &Path| Weights::from_folder(&model.join("transformer")).expect("weights");
    let (before, after) = (open(&model), open(merged));
    let changed = before
        .names()
        .filter(|name| before.data(name) != after.data(name));
    let changed: Vec<&str> = changed.collect();
    assert_eq!(
        changed,
        [
            "single_transformer_blocks.0.attn.to_k.weight",
            "single_transformer_blocks.0.attn.to_q.weight",
            "single_transformer_blocks.0.attn.to_v.weight",
            "single_transformer_blocks.0.proj_mlp.weight",
            "transformer_blocks.0.attn.to_k.weight",
            "transformer_blocks.0.attn.to_q.weight",
            "transformer_blocks.0.attn.to_v.weight",
            "transformer_blocks.0.ff.net.0.proj.weight",
        ]
    );
    assert!(
        after
            .names()
            .all(|name| after.dtype_name(name).as_deref() == Some("BF16"))
    );
    let with_adapter = edited(&folder, &from, &["--adapter", &adapter]);
    assert!(difference(&edited(&folder, &to, &[]), &with_adapter) <= 4);
}

#[test]
fn what_can_not_be_written_or_does_not_fit_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let adapter = kohya_file(folder.path()).display().to_string();
    let [flux, qwen] = [FLUX, QWEN].map(|case| pipeline(case).display().to_string());
    let new = inside(&folder, "new");
    let message = refused(&[
        "lora", "merge", &adapter, "--model", &qwen, "--output", &new,
    ]);
    assert!(
        message.contains("the adapter does not fit this model, read as kohya names layers"),
        "{message}"
    );
    let message = refused(&[
        "lora", "merge", &adapter, "--model", &flux, "--output", &flux,
    ]);
    assert!(
        message.contains("is there already, expected a new folder"),
        "{message}"
    );
    let message = refused(&[
        "lora", "convert", &adapter, "--to", "peft", "--output", &flux,
    ]);
    assert!(
        message.contains("is there already, expected a new folder"),
        "{message}"
    );
    let message = refused(&[
        "lora", "convert", &adapter, "--to", "kohya", "--output", &new,
    ]);
    assert!(
        message.contains("[possible values: peft, diffusers]"),
        "{message}"
    );
    let underscored = folder.path().join("underscored.safetensors");
    let tensors = kohya("lora_unet_transformer_blocks_0_attn_to_q", [4, 4], 2);
    write_safetensors(&underscored, &tensors, &BTreeMap::new()).expect("a written file");
    let underscored = underscored.display().to_string();
    let message = refused(&[
        "lora",
        "convert",
        &underscored,
        "--to",
        "peft",
        "--output",
        &new,
    ]);
    assert!(message.contains("name it with --model FOLDER"), "{message}");
    assert_eq!(
        names(folder.path()),
        ["kohya.safetensors", "underscored.safetensors"]
    );
}
