//! Adapter files of all formats, with names as their programs write them.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, TensorData};

use crate::lora::{AdapterFile, LoraAdapter, Projection, load_adapter};
use crate::weights::{TensorMap, write_safetensors};

const HIDDEN: usize = 4;

/// The layers of FLUX with one block of each kind.
fn flux() -> Vec<Projection> {
    let double = [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
    ];
    let double = double.map(|name| {
        (
            format!("transformer_blocks.0.attn.{name}"),
            [HIDDEN, HIDDEN],
        )
    });
    let single = ["to_q", "to_k", "to_v"];
    let single = single.map(|name| {
        (
            format!("single_transformer_blocks.0.attn.{name}"),
            [HIDDEN, HIDDEN],
        )
    });
    let wide = [
        ("transformer_blocks.0.norm1.linear", [6 * HIDDEN, HIDDEN]),
        (
            "transformer_blocks.0.norm1_context.linear",
            [6 * HIDDEN, HIDDEN],
        ),
        ("transformer_blocks.0.ff.net.0.proj", [4 * HIDDEN, HIDDEN]),
        ("transformer_blocks.0.ff.net.2", [HIDDEN, 4 * HIDDEN]),
        (
            "transformer_blocks.0.ff_context.net.0.proj",
            [4 * HIDDEN, HIDDEN],
        ),
        (
            "transformer_blocks.0.ff_context.net.2",
            [HIDDEN, 4 * HIDDEN],
        ),
        (
            "single_transformer_blocks.0.norm.linear",
            [3 * HIDDEN, HIDDEN],
        ),
        ("single_transformer_blocks.0.proj_mlp", [4 * HIDDEN, HIDDEN]),
        ("single_transformer_blocks.0.proj_out", [HIDDEN, 5 * HIDDEN]),
    ];
    let wide = wide.map(|(name, shape)| (name.to_owned(), shape));
    let all = double.into_iter().chain(single).chain(wide);
    all.map(|(name, [out_features, in_features])| Projection {
        name,
        in_features,
        out_features,
    })
    .collect()
}

/// Values that are all different.
fn values(rows: usize, columns: usize, seed: f32) -> TensorData {
    let values = (0..rows * columns).map(|i| seed + i as f32 / 8.0);
    TensorData::new(values.collect::<Vec<f32>>(), [rows, columns])
}

fn alpha(value: f32) -> TensorData {
    TensorData::new(vec![value], Vec::<usize>::new())
}

/// The factors of one layer under two names.
fn factors([a, b]: [&str; 2], [out_features, in_features]: [usize; 2], rank: usize) -> TensorMap {
    let (a_values, b_values) = (
        values(rank, in_features, 1.0),
        values(out_features, rank, -2.0),
    );
    [(a.to_owned(), a_values), (b.to_owned(), b_values)].into()
}

fn write(folder: &Path, tensors: &TensorMap) -> PathBuf {
    let path = folder.join("any name.safetensors");
    write_safetensors(&path, tensors, &Default::default()).unwrap();
    path
}

fn load(tensors: &TensorMap) -> Result<LoraAdapter, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), tensors);
    load_adapter(&path, &flux(), &Device::flex()).map_err(|error| error.to_string())
}

/// What the adapter adds to the weight of each layer that it changes, row by row.
fn updates(adapter: &LoraAdapter) -> Vec<(String, Vec<f32>)> {
    let update = |(slot, projection): (usize, &Projection)| {
        let pair = adapter.pair(slot)?;
        let product = pair.b.val().matmul(pair.a.val()) * adapter.scale();
        Some((
            projection.name.clone(),
            product.into_data().try_to_vec().unwrap(),
        ))
    };
    flux().iter().enumerate().filter_map(update).collect()
}

/// Row by row, scale B A of the factors that [`factors`] makes.
fn product([out_features, in_features]: [usize; 2], rank: usize, scale: f32) -> Vec<f32> {
    let a: Vec<f32> = values(rank, in_features, 1.0).try_to_vec().unwrap();
    let b: Vec<f32> = values(out_features, rank, -2.0).try_to_vec().unwrap();
    let entry = |row: usize, column: usize| -> f32 {
        (0..rank)
            .map(|i| b[row * rank + i] * a[i * in_features + column])
            .sum()
    };
    (0..out_features)
        .flat_map(|row| (0..in_features).map(move |column| (row, column)))
        .map(|(row, column)| scale * entry(row, column))
        .collect()
}

/// diffusers' pipelines put "transformer." before all keys, `save_lora_adapter` of a transformer alone nothing.
#[test]
fn diffusers_metadata_is_read_with_a_prefix_and_without() {
    let layer = "transformer_blocks.0.attn.to_q";
    for prefix in ["transformer.", ""] {
        let names = ["A", "B"].map(|factor| format!("{prefix}{layer}.lora_{factor}.weight"));
        let names = names.each_ref().map(String::as_str);
        let header = format!("{{\"{prefix}r\": 2, \"{prefix}lora_alpha\": 6.0}}");
        let metadata = [("lora_adapter_metadata".to_owned(), header)].into();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pytorch_lora_weights.safetensors");
        write_safetensors(&path, &factors(names, [HIDDEN, HIDDEN], 2), &metadata).unwrap();
        let adapter = load_adapter(&path, &flux(), &Device::flex()).unwrap();
        let expected = [(layer.to_owned(), product([HIDDEN, HIDDEN], 2, 3.0))];
        assert_eq!(updates(&adapter), expected, "{prefix:?}");
    }
}

#[test]
fn one_layer_is_read_under_the_names_of_every_program() {
    let (layer, shape) = ("transformer_blocks.0.attn.to_out.0", [HIDDEN, HIDDEN]);
    let expected = [(layer.to_owned(), product(shape, 2, 1.0))];
    for (a, b, format) in [
        (
            "base_model.model.transformer_blocks.0.attn.to_out.0.lora_A.weight",
            "base_model.model.transformer_blocks.0.attn.to_out.0.lora_B.weight",
            "peft",
        ),
        (
            "base_model.model.transformer_blocks.0.attn.to_out.0.lora_A.default.weight",
            "base_model.model.transformer_blocks.0.attn.to_out.0.lora_B.default.weight",
            "peft",
        ),
        (
            "base_model.model.double_blocks.0.img_attn.proj.lora_A.weight",
            "base_model.model.double_blocks.0.img_attn.proj.lora_B.weight",
            "peft",
        ),
        (
            "transformer.transformer_blocks.0.attn.to_out.0.lora_A.weight",
            "transformer.transformer_blocks.0.attn.to_out.0.lora_B.weight",
            "diffusers",
        ),
        (
            "transformer.transformer_blocks.0.attn.to_out.0.lora_down.weight",
            "transformer.transformer_blocks.0.attn.to_out.0.lora_up.weight",
            "diffusers",
        ),
        (
            "transformer.transformer_blocks.0.attn.to_out.0.lora.down.weight",
            "transformer.transformer_blocks.0.attn.to_out.0.lora.up.weight",
            "diffusers",
        ),
        (
            "diffusion_model.transformer_blocks.0.attn.to_out.0.lora_A.weight",
            "diffusion_model.transformer_blocks.0.attn.to_out.0.lora_B.weight",
            "ComfyUI",
        ),
        (
            "diffusion_model.double_blocks.0.img_attn.proj.lora_A.weight",
            "diffusion_model.double_blocks.0.img_attn.proj.lora_B.weight",
            "ComfyUI",
        ),
        (
            "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight",
            "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight",
            "kohya",
        ),
        (
            "lora_unet_transformer_blocks_0_attn_to_out_0.lora_down.weight",
            "lora_unet_transformer_blocks_0_attn_to_out_0.lora_up.weight",
            "kohya",
        ),
        (
            "lora_transformer_transformer_blocks_0_attn_to_out_0.lora_down.weight",
            "lora_transformer_transformer_blocks_0_attn_to_out_0.lora_up.weight",
            "OneTrainer",
        ),
        (
            "transformer_blocks.0.attn.to_out.0.lora_A.weight",
            "transformer_blocks.0.attn.to_out.0.lora_B.weight",
            "bare layer names",
        ),
        (
            "transformer_blocks.0.attn.to_out.0.lora_A.default.weight",
            "transformer_blocks.0.attn.to_out.0.lora_B.default.weight",
            "bare layer names",
        ),
        (
            "double_blocks.0.processor.proj_lora1.down.weight",
            "double_blocks.0.processor.proj_lora1.up.weight",
            "bare layer names",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), &factors([a, b], shape, 2));
        let file = AdapterFile::open(&path).unwrap();
        assert_eq!(file.format(), format, "{a}");
        let adapter = file.load(&flux(), &Device::flex()).unwrap();
        assert_eq!(updates(&adapter), expected, "{a}");
    }
}

#[test]
fn fused_layers_are_split_exactly() {
    for (layer, parts) in [
        (
            "lora_unet_double_blocks_0_img_attn_qkv",
            &[
                "transformer_blocks.0.attn.to_q",
                "transformer_blocks.0.attn.to_k",
                "transformer_blocks.0.attn.to_v",
            ][..],
        ),
        (
            "diffusion_model.double_blocks.0.txt_attn.qkv",
            &[
                "transformer_blocks.0.attn.add_q_proj",
                "transformer_blocks.0.attn.add_k_proj",
                "transformer_blocks.0.attn.add_v_proj",
            ],
        ),
        (
            "lora_unet_single_blocks_0_linear1",
            &[
                "single_transformer_blocks.0.attn.to_q",
                "single_transformer_blocks.0.attn.to_k",
                "single_transformer_blocks.0.attn.to_v",
                "single_transformer_blocks.0.proj_mlp",
            ],
        ),
    ] {
        let shape = [
            if parts.len() == 4 {
                7 * HIDDEN
            } else {
                3 * HIDDEN
            },
            HIDDEN,
        ];
        let names = ["lora_down", "lora_up"].map(|factor| format!("{layer}.{factor}.weight"));
        let mut tensors = factors([&names[0], &names[1]], shape, 2);
        tensors.insert(format!("{layer}.alpha"), alpha(1.0));
        let updates = updates(&load(&tensors).unwrap());
        let names: Vec<&str> = updates.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, parts);
        let joined: Vec<f32> = updates.into_iter().flat_map(|(_, rows)| rows).collect();
        assert_eq!(joined, product(shape, 2, 0.5), "{layer}");
    }
    let names = [
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight",
    ];
    let error = load(&factors(names, [3 * HIDDEN + 1, HIDDEN], 2)).unwrap_err();
    assert!(
        error.contains("has 13 rows, which are not those of transformer_blocks.0.attn.to_q"),
        "{error}"
    );
}

#[test]
fn every_layer_has_its_own_rank_and_alpha() {
    let layers = [
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.attn.to_k",
        "transformer_blocks.0.attn.to_v",
    ];
    let shape = [HIDDEN, HIDDEN];
    let mut tensors = TensorMap::new();
    for (layer, rank) in layers.iter().zip([2, 4, 3]) {
        let names =
            ["lora_A", "lora_B"].map(|factor| format!("transformer.{layer}.{factor}.weight"));
        tensors.extend(factors([&names[0], &names[1]], shape, rank));
    }
    // Without alphas, a layer's alpha is its rank.
    let adapter = load(&tensors).unwrap();
    assert_eq!(adapter.scale(), 1.0);
    let plain = |scales: [f32; 3]| -> Vec<(String, Vec<f32>)> {
        let ranks = [2, 4, 3].into_iter().zip(scales);
        let products = ranks.map(|(rank, scale)| product(shape, rank, scale));
        layers.map(String::from).into_iter().zip(products).collect()
    };
    assert_eq!(updates(&adapter), plain([1.0; 3]));
    // Those that have one are scaled by it.
    tensors.insert(
        "transformer.transformer_blocks.0.attn.to_q.alpha".into(),
        alpha(8.0),
    );
    tensors.insert(
        "transformer.transformer_blocks.0.attn.to_k.alpha".into(),
        alpha(2.0),
    );
    assert_eq!(updates(&load(&tensors).unwrap()), plain([4.0, 0.5, 1.0]));
    // An alpha of nothing switches a layer off, and no other.
    tensors.insert(
        "transformer.transformer_blocks.0.attn.to_k.alpha".into(),
        alpha(0.0),
    );
    assert_eq!(updates(&load(&tensors).unwrap()), plain([4.0, 0.0, 1.0]));
    tensors.insert(
        "transformer.transformer_blocks.0.attn.to_k.alpha".into(),
        alpha(f32::NAN),
    );
    let error = load(&tensors).unwrap_err();
    assert!(
        error.contains("to_k.alpha is [NaN], expected one finite number"),
        "{error}"
    );
}

#[test]
fn alpha_without_dimensions_and_in_half_precision_is_read() {
    let layer = "diffusion_model.transformer_blocks.0.attn.to_q";
    let names = ["lora_A", "lora_B"].map(|factor| format!("{layer}.{factor}.weight"));
    let mut tensors = factors([&names[0], &names[1]], [HIDDEN, HIDDEN], 2);
    for alpha in [
        alpha(3.0),
        TensorData::new(vec![3.0f32], [1]),
        alpha(3.0).convert_dtype(burn::tensor::DType::BF16),
    ] {
        tensors.insert(format!("{layer}.alpha"), alpha);
        assert_eq!(load(&tensors).unwrap().scale(), 1.5);
    }
}

#[test]
fn what_does_not_fit_is_told_with_its_reason() {
    let names = |layer: &str| {
        ["lora_A", "lora_B"].map(|factor| format!("transformer.{layer}.{factor}.weight"))
    };
    let one = |layer: &str, shape| {
        let names = names(layer);
        load(&factors([&names[0], &names[1]], shape, 2)).unwrap_err()
    };
    let error = one("transformer_blocks.1.attn.to_q", [HIDDEN, HIDDEN]);
    let expected = "the adapter does not fit this model, read as diffusers names layers; unknown layer (1): \
                    transformer_blocks.1.attn.to_q (there are single_transformer_blocks.0.attn.to_k, ";
    assert!(error.contains(expected), "{error}");
    let error = one("proj_out", [HIDDEN, HIDDEN]);
    let expected = "layer outside of the blocks, which adapters do not change here (1): proj_out";
    assert!(error.ends_with(expected), "{error}");
    let error = one("transformer_blocks.0.attn.to_q", [HIDDEN, 9]);
    assert!(
        error.ends_with(
            "other width (1): transformer_blocks.0.attn.to_q expects 4 inputs, the file has 9"
        ),
        "{error}"
    );
    let error = one("transformer_blocks.0.attn.to_q", [6, HIDDEN]);
    assert!(
        error.ends_with(
            "other width (1): transformer_blocks.0.attn.to_q expects 4 outputs, the file has 6"
        ),
        "{error}"
    );
}

#[test]
fn what_is_no_sound_adapter_is_told_by_name() {
    let layer = "transformer.transformer_blocks.0.attn.to_q";
    let names = ["lora_A", "lora_B"].map(|factor| format!("{layer}.{factor}.weight"));
    let sound = factors([&names[0], &names[1]], [HIDDEN, HIDDEN], 2);
    let with = |name: &str, data: TensorData| {
        let mut tensors = sound.clone();
        tensors.insert(name.to_owned(), data);
        load(&tensors).unwrap_err()
    };
    for (name, expected) in [
        (
            "transformer.transformer_blocks.0.attn.to_k.lora_A.weight",
            "transformer_blocks.0.attn.to_k lacks its factor B (up)",
        ),
        (
            "transformer.transformer_blocks.0.attn.to_k.lora_up.weight",
            "transformer_blocks.0.attn.to_k lacks its factor A (down)",
        ),
        (
            "transformer.transformer_blocks.0.attn.to_q.lora_down.weight",
            "are the same factor",
        ),
        (
            "transformer_blocks.0.attn.to_q.lora_A.weight",
            "names that are not in the format of diffusers (1): transformer_blocks.0",
        ),
        (
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
            "a LoRA of the text encoders (as well) (lora_te1_",
        ),
        (
            "transformer.transformer_blocks.0.attn.to_q.lora_magnitude_vector",
            "a DoRA adapter (transformer.transformer_blocks.0",
        ),
        (
            "lora_unet_double_blocks_0_img_attn_qkv.lokr_w1",
            "a LoKr adapter (lora_unet_double",
        ),
    ] {
        let error = with(name, values(2, HIDDEN, 0.0));
        assert!(error.contains(expected), "{name}: {error}");
    }
    let mut other = sound.clone();
    other.insert(names[1].clone(), values(HIDDEN, 3, 0.0));
    let error = load(&other).unwrap_err();
    assert!(
        error.contains("[2, 4]") && error.contains("[4, 3]"),
        "{error}"
    );
    let mut several = factors(
        ["x.0.q.lora_A.one.weight", "x.0.q.lora_B.one.weight"],
        [HIDDEN, HIDDEN],
        2,
    );
    several.extend(factors(
        ["x.0.k.lora_A.two.weight", "x.0.k.lora_B.two.weight"],
        [HIDDEN, HIDDEN],
        2,
    ));
    let error = load(&several).unwrap_err();
    assert!(
        error.contains("several adapters in one file: one, two"),
        "{error}"
    );
    let weights = [("proj.weight".to_owned(), values(2, 2, 0.0))].into();
    let error = load(&weights).unwrap_err();
    let expected = "no sound adapter; none of its tensors is named as an adapter's are (1): proj.weight; supported: ";
    assert!(error.contains(expected), "{error}");
    assert!(
        load(&TensorMap::new())
            .unwrap_err()
            .contains("it has no factors")
    );
}

#[test]
fn a_peft_folder_may_have_any_prefix_and_must_say_the_right_rank() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    let names = ["lora_A", "lora_B"]
        .map(|factor| format!("transformer_blocks.0.attn.to_q.{factor}.default.weight"));
    let tensors = factors([&names[0], &names[1]], [HIDDEN, HIDDEN], 2);
    write_safetensors(&path, &tensors, &Default::default()).unwrap();
    let config = |text: &str| {
        fs::write(folder.path().join("adapter_config.json"), text).unwrap();
        load_adapter(folder.path(), &flux(), &Device::flex()).map_err(|error| error.to_string())
    };
    assert_eq!(
        config("\u{feff}{\"r\": 2, \"lora_alpha\": 6, \"alpha_pattern\": null}")
            .unwrap()
            .scale(),
        3.0
    );
    let square_root = config(r#"{"r": 2, "lora_alpha": 6, "use_rslora": true}"#).unwrap();
    assert_eq!(square_root.scale(), 6.0 / 2f64.sqrt());
    let error = config(r#"{"r": 16, "lora_alpha": 6}"#).unwrap_err();
    assert!(
        error.contains("has rank 2, its configuration says 16"),
        "{error}"
    );
}
