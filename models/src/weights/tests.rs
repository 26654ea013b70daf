use std::fs;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::save::save_folder;
use super::*;
use crate::init::Init;

#[derive(Module, Debug)]
struct Layer {
    weight: Param<Tensor<2>>,
    bias: Option<Param<Tensor<1>>>,
}

#[derive(Module, Debug)]
struct Net {
    blocks: Vec<Layer>,
    proj: Layer,
}

const NAMES: Names = Names {
    prefix: "",
    rename: &[("proj", "proj.0")],
    ignored: &["position_ids"],
};

fn net(seed: u64) -> Net {
    net_on(&Init::new(seed, &Device::flex()))
}

fn net_on(init: &Init) -> Net {
    let layer = |bias| Layer {
        weight: init.fan_in([2, 3]),
        bias,
    };
    Net {
        blocks: vec![layer(Some(init.ones([2]))), layer(None)],
        proj: layer(None),
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn a_saved_folder_loads_back_to_the_same_tensors() {
    let folder = folder();
    let net = net(1);
    save_folder(
        folder.path(),
        &serde_json::json!({"a": 1}),
        &net,
        &NAMES,
        DIFFUSERS_FILE,
    )
    .unwrap();
    let weights = Weights::from_folder(folder.path()).unwrap();
    let names: Vec<&str> = weights.names().collect();
    let expected = [
        "blocks.0.bias",
        "blocks.0.weight",
        "blocks.1.weight",
        "proj.0.weight",
    ];
    assert_eq!(names, expected);
    let loaded = weights.load(self::net(2), &NAMES).unwrap();
    assert_eq!(tensors_of(&loaded, &NAMES), tensors_of(&net, &NAMES));
    let config: serde_json::Value = read_config(&folder.path().join("config.json")).unwrap();
    assert_eq!(config["a"], 1);
}

#[test]
fn shards_are_found_through_their_index() {
    let folder = folder();
    let all = tensors_of(&net(1), &NAMES);
    let mut weight_map = serde_json::Map::new();
    for (i, name) in all.keys().enumerate() {
        let file = format!("model-{}-of-2.safetensors", i % 2 + 1);
        weight_map.insert(name.clone(), file.into());
    }
    for part in ["model-1-of-2.safetensors", "model-2-of-2.safetensors"] {
        let of_part = |name: &String| weight_map[name] == part;
        let tensors = all.iter().filter(|(name, _)| of_part(name));
        let tensors = tensors.map(|(n, d)| (n.clone(), d.clone())).collect();
        write_safetensors(&folder.path().join(part), &tensors, &Default::default()).unwrap();
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": weight_map});
    write_config(&folder.path().join("model.safetensors.index.json"), &index).unwrap();
    let weights = Weights::from_folder(folder.path()).unwrap();
    let loaded = weights.load(net(2), &NAMES).unwrap();
    assert_eq!(tensors_of(&loaded, &NAMES), all);
}

#[test]
fn every_name_that_does_not_fit_is_in_one_error() {
    let mut tensors = tensors_of(&net(1), &NAMES);
    tensors.remove("blocks.0.bias");
    let wrong = TensorData::zeros::<f32, _>([3, 2]);
    tensors.insert("blocks.1.weight".into(), wrong.clone());
    tensors.insert("extra.weight".into(), wrong.clone());
    tensors.insert("embeddings.position_ids".into(), wrong);
    let bytes = to_safetensors(&tensors, &Default::default());
    let weights = Weights::from_bytes("net".as_ref(), bytes).unwrap();
    let error = weights.load(net(2), &NAMES).unwrap_err().to_string();
    assert_eq!(
        error,
        "net: tensors do not fit the configuration; missing (1): blocks.0.bias; unexpected (1): \
         extra.weight; wrong shape (1): blocks.1.weight is [3, 2], expected [2, 3]"
    );
}

#[test]
fn names_of_alike_layers_are_folded_in_the_error() {
    let weights = Weights::from_bytes(
        "net".as_ref(),
        to_safetensors(&TensorMap::new(), &Default::default()),
    );
    let error = weights
        .unwrap()
        .load(net(2), &NAMES)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("missing (4): blocks.0.bias, blocks.{0..1}.weight, proj.0.weight"),
        "{error}"
    );
}

#[test]
fn shards_that_are_missing_or_truncated_are_named() {
    let folder = folder();
    let all = tensors_of(&net(1), &NAMES);
    write_safetensors(
        &folder.path().join("a.safetensors"),
        &all,
        &Default::default(),
    )
    .unwrap();
    let index = serde_json::json!({"weight_map": {
        "blocks.0.bias": "a.safetensors", "blocks.0.weight": "b.safetensors", "proj.0.weight": "c.safetensors",
    }});
    write_config(&folder.path().join("model.safetensors.index.json"), &index).unwrap();
    let error = || {
        Weights::from_folder(folder.path())
            .err()
            .unwrap()
            .to_string()
    };
    assert!(
        error().ends_with("2 of its 3 shards are missing: b.safetensors, c.safetensors"),
        "{}",
        error()
    );
    let whole = fs::read(folder.path().join("a.safetensors")).unwrap();
    fs::write(folder.path().join("c.safetensors"), &whole).unwrap();
    fs::write(
        folder.path().join("b.safetensors"),
        &whole[..whole.len() - 4],
    )
    .unwrap();
    assert!(
        error().contains(&format!(
            "are not the {} that its header describes",
            whole.len()
        )) && error().contains("truncated"),
        "{}",
        error()
    );
    let mut long = whole.clone();
    long.push(0);
    fs::write(folder.path().join("b.safetensors"), &long).unwrap();
    let more = format!(
        "are more than the {} that its header describes",
        whole.len()
    );
    assert!(error().contains(&more), "{}", error());
    fs::write(folder.path().join("b.safetensors"), &whole[..20]).unwrap();
    assert!(
        error().contains("b.safetensors: its 20 bytes end before its header does"),
        "{}",
        error()
    );
}

/// A file with one tensor `w` of two elements of this type, one byte each.
fn of_type(dtype: &str) -> Vec<u8> {
    let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,2]}}}}"#);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0, 0]);
    bytes
}

#[test]
fn weights_that_are_no_floats_are_named_with_their_type() {
    #[derive(Module, Debug)]
    struct One {
        w: Param<Tensor<1>>,
    }
    let error = |dtype: &str| {
        let weights = Weights::from_bytes("w".as_ref(), of_type(dtype)).unwrap();
        let one = One {
            w: Init::unused().zeros([2]),
        };
        let loaded = weights.load(one, &Names::default());
        loaded.unwrap_err().to_string()
    };
    for dtype in ["I8", "U8", "BOOL"] {
        let expected = format!("(1): w is {dtype}, expected BF16, F16 or F32");
        assert!(error(dtype).ends_with(&expected), "{}", error(dtype));
    }
    let fp8 = error("F8_E4M3");
    assert!(
        fp8.contains("; the weights are quantised (fp8): download"),
        "{fp8}"
    );
}

#[test]
fn weights_with_scales_beside_them_are_quantised() {
    let mut tensors = tensors_of(&net(1), &NAMES);
    tensors.insert(
        "proj.0.weight.absmax".into(),
        TensorData::zeros::<f32, _>([2]),
    );
    let bytes = to_safetensors(&tensors, &Default::default());
    let weights = Weights::from_bytes("net".as_ref(), bytes).unwrap();
    let misfit = Table::of(&net(2), &NAMES).misfit(&weights).lines();
    assert_eq!(misfit.len(), 1, "{misfit:?}");
    assert!(misfit[0].contains("bitsandbytes, 4 bits"), "{misfit:?}");
}

#[test]
fn an_index_counts_before_files_that_it_does_not_name() {
    let folder = folder();
    let all = tensors_of(&net(1), &NAMES);
    let shard = "diffusion_pytorch_model-00001-of-00001.safetensors";
    write_safetensors(&folder.path().join(shard), &all, &Default::default()).unwrap();
    let weight_map: serde_json::Map<_, _> = all
        .keys()
        .map(|name| (name.clone(), shard.into()))
        .collect();
    let index = serde_json::json!({"weight_map": weight_map});
    let path = folder.path().join(format!("{DIFFUSERS_FILE}.index.json"));
    write_config(&path, &index).unwrap();
    // The files of another save are not even opened.
    for stale in [
        DIFFUSERS_FILE,
        "diffusion_pytorch_model-00001-of-00003.safetensors",
    ] {
        fs::write(folder.path().join(stale), "stale").unwrap();
    }
    let weights = Weights::from_folder(folder.path()).unwrap();
    let loaded = weights.load(net(2), &NAMES).unwrap();
    assert_eq!(tensors_of(&loaded, &NAMES), all);
}

#[test]
fn half_precision_files_load_as_f32_and_back() {
    let bf16: TensorMap = tensors_of(&net(1), &NAMES)
        .into_iter()
        .map(|(name, data)| (name, data.convert_dtype(DType::BF16)))
        .collect();
    let bytes = to_safetensors(&bf16, &Default::default());
    let weights = Weights::from_bytes("net".as_ref(), bytes).unwrap();
    let wide = weights.load(net(2), &NAMES).unwrap();
    assert_eq!(wide.proj.weight.val().dtype(), DType::F32);
    let narrow = weights.load_as(net(2), &NAMES, DType::BF16).unwrap();
    assert_eq!(tensors_of(&narrow, &NAMES), bf16);
}

#[test]
fn loading_keeps_the_gradient_setting_and_the_device() {
    let bytes = to_safetensors(&tensors_of(&net(1), &NAMES), &Default::default());
    let weights = Weights::from_bytes("net".as_ref(), bytes).unwrap();
    let autodiff = Device::flex().autodiff();
    let trainable = weights
        .load(net_on(&Init::new(0, &autodiff)), &NAMES)
        .unwrap();
    assert!(trainable.proj.weight.val().is_require_grad());
    let frozen = net_on(&Init::new(0, &autodiff)).no_grad();
    let frozen = weights.load(frozen, &NAMES).unwrap();
    let weight = frozen.proj.weight.val();
    assert!(weight.is_autodiff() && !weight.is_require_grad());
}

#[test]
fn equal_content_gives_equal_bytes() {
    let metadata = |n: usize| (0..n).map(|i| (format!("k{i}"), i.to_string())).collect();
    let tensors = tensors_of(&net(1), &NAMES);
    assert_eq!(
        to_safetensors(&tensors, &metadata(9)),
        to_safetensors(&tensors, &metadata(9))
    );
}

#[test]
fn broken_files_are_named() {
    let folder = folder();
    let error = Weights::from_folder(folder.path())
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("no weights") && error.contains(DIFFUSERS_FILE),
        "{error}"
    );
    let path = folder.path().join(TRANSFORMERS_FILE);
    fs::write(&path, b"not a tensor file").unwrap();
    let error = Weights::from_folder(folder.path())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("model.safetensors: "), "{error}");
}
