use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{LoraAdapter, LoraConfig, LoraPair, Projection};
use crate::weights::{
    LoadError, Misshaped, TensorMap, Weights, read_config, write_config, write_safetensors,
};

const CONFIG_FILE: &str = "adapter_config.json";
const PEFT_FILE: &str = "adapter_model.safetensors";
const DIFFUSERS_FILE: &str = "pytorch_lora_weights.safetensors";
const PEFT_PREFIX: &str = "base_model.model";
const DIFFUSERS_PREFIX: &str = "transformer";
const DIFFUSERS_METADATA: &str = "lora_adapter_metadata";

/// The fields of peft's configuration that change what an adapter computes.
#[derive(Deserialize)]
struct PeftConfig {
    #[serde(default = "peft_default")]
    r: usize,
    #[serde(default = "peft_default")]
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
}

fn peft_default<T: From<u8>>() -> T {
    T::from(8)
}

/// Saves an adapter as peft does: `adapter_config.json` and `adapter_model.safetensors`.
///
/// # Errors
/// If the folder can't be written.
pub fn save_peft(
    folder: &Path,
    adapter: &LoraAdapter,
    config: &LoraConfig,
    projections: &[Projection],
) -> Result<(), LoadError> {
    fs::create_dir_all(folder).map_err(|source| LoadError::io(folder, source))?;
    write_config(&folder.join(CONFIG_FILE), &peft_config(config))?;
    let tensors = named_factors(adapter, projections, PEFT_PREFIX);
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&folder.join(PEFT_FILE), &tensors, &metadata)
}

/// Saves an adapter as the one file that diffusers' `load_lora_weights` takes:
/// `pytorch_lora_weights.safetensors`.
///
/// Its header carries alpha, since diffusers otherwise takes alpha to be the rank.
///
/// # Errors
/// If the folder can't be written.
pub fn save_diffusers(
    folder: &Path,
    adapter: &LoraAdapter,
    config: &LoraConfig,
    projections: &[Projection],
) -> Result<(), LoadError> {
    fs::create_dir_all(folder).map_err(|source| LoadError::io(folder, source))?;
    let prefixed =
        |(key, value): (&String, &Value)| (format!("{DIFFUSERS_PREFIX}.{key}"), value.clone());
    let config = peft_config(config);
    let header: serde_json::Map<_, _> = config
        .as_object()
        .into_iter()
        .flatten()
        .map(prefixed)
        .collect();
    let metadata = BTreeMap::from([
        ("format".to_owned(), "pt".to_owned()),
        (
            DIFFUSERS_METADATA.to_owned(),
            Value::Object(header).to_string(),
        ),
    ]);
    let tensors = named_factors(adapter, projections, DIFFUSERS_PREFIX);
    write_safetensors(&folder.join(DIFFUSERS_FILE), &tensors, &metadata)
}

/// Loads a peft folder as an adapter for a model with the given projections.
///
/// # Errors
/// If a file can't be read, the adapter is of a kind that is not plain LoRA, or its factors do
/// not fit the model: then all names that do not are in the error.
pub fn load_peft(
    folder: &Path,
    projections: &[Projection],
    device: &Device,
) -> Result<LoraAdapter, LoadError> {
    let path = folder.join(CONFIG_FILE);
    let config: PeftConfig = read_config(&path)?;
    config.check(&path)?;
    let weights = Weights::from_file(&folder.join(PEFT_FILE))?;
    load_factors(&weights, PEFT_PREFIX, &config, projections, device)
}

/// Loads a `pytorch_lora_weights.safetensors` file as diffusers does: without metadata, alpha is
/// the rank.
///
/// # Errors
/// As [`load_peft`].
pub fn load_diffusers(
    path: &Path,
    projections: &[Projection],
    device: &Device,
) -> Result<LoraAdapter, LoadError> {
    let weights = Weights::from_file(path)?;
    let header = weights
        .metadata()
        .and_then(|metadata| metadata.get(DIFFUSERS_METADATA));
    let config = match header {
        Some(header) => parse_header(header).map_err(|source| LoadError::format(path, source))?,
        None => alpha_is_rank(&weights),
    };
    config.check(path)?;
    load_factors(&weights, DIFFUSERS_PREFIX, &config, projections, device)
}

fn peft_config(config: &LoraConfig) -> Value {
    json!({
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "target_modules": config.target_modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": false,
        "use_dora": false,
        "inference_mode": true,
        "init_lora_weights": "gaussian",
    })
}

fn parse_header(header: &str) -> serde_json::Result<PeftConfig> {
    let header: BTreeMap<String, Value> = serde_json::from_str(header)?;
    let prefix = format!("{DIFFUSERS_PREFIX}.");
    let fields = header
        .into_iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?.to_owned(), value)));
    serde_json::from_value(Value::Object(fields.collect()))
}

fn alpha_is_rank(weights: &Weights) -> PeftConfig {
    let first_a = weights
        .names()
        .find(|name| name.ends_with(".lora_A.weight"));
    let rank = first_a.and_then(|name| weights.shape(name)?.first().copied());
    let rank = rank.unwrap_or(1);
    PeftConfig {
        r: rank,
        lora_alpha: rank as f64,
        use_rslora: false,
        use_dora: false,
        bias: None,
        alpha_pattern: BTreeMap::new(),
    }
}

impl PeftConfig {
    fn check(&self, path: &Path) -> Result<(), LoadError> {
        let unsupported = |field, value: &str, supported| LoadError::Unsupported {
            path: path.to_owned(),
            field,
            value: value.to_owned(),
            supported,
        };
        match self.bias.as_deref() {
            None | Some("none") => {}
            Some(other) => return Err(unsupported("bias", other, "none")),
        }
        if self.use_dora {
            return Err(unsupported("use_dora", "true", "false"));
        }
        if self.r == 0 {
            return Err(unsupported("r", "0", "1 or more"));
        }
        Ok(())
    }

    fn scale(&self, alpha: f64, rank: usize) -> f64 {
        let rank = rank as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// The scale of the layer called `name`, whose factors have rank `rank`.
    fn scale_of(&self, name: &str, rank: usize) -> f64 {
        let ends = |pattern: &str| {
            let rest = name.strip_suffix(pattern);
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let own = self.alpha_pattern.iter().find(|(pattern, _)| ends(pattern));
        self.scale(own.map_or(self.lora_alpha, |(_, alpha)| *alpha), rank)
    }
}

fn named_factors(adapter: &LoraAdapter, projections: &[Projection], prefix: &str) -> TensorMap {
    let mut tensors = TensorMap::new();
    for (slot, projection) in projections.iter().enumerate() {
        let Some(pair) = adapter.pair(slot) else {
            continue;
        };
        for (factor, tensor) in [("lora_A", &pair.a), ("lora_B", &pair.b)] {
            let name = format!("{prefix}.{}.{factor}.weight", projection.name);
            tensors.insert(name, tensor.val().into_data());
        }
    }
    tensors
}

fn load_factors(
    weights: &Weights,
    prefix: &str,
    config: &PeftConfig,
    projections: &[Projection],
    device: &Device,
) -> Result<LoraAdapter, LoadError> {
    let mut factors = Factors {
        weights,
        device,
        used: BTreeSet::new(),
        missing: Vec::new(),
        misshaped: Vec::new(),
    };
    let scale = config.scale(config.lora_alpha, config.r);
    let mut pairs = Vec::with_capacity(projections.len());
    for projection in projections {
        let pair = factors.pair(&format!("{prefix}.{}", projection.name), projection)?;
        pairs.push(pair.map(|(a, b)| {
            // One scale serves all layers: where a layer has its own rank or alpha, B takes the rest.
            let own = config.scale_of(&projection.name, a.dims()[0]);
            let b = if own == scale { b } else { b * (own / scale) };
            LoraPair {
                a: Param::from_tensor(a),
                b: Param::from_tensor(b),
            }
        }));
    }
    factors.finish()?;
    Ok(LoraAdapter::from_pairs(pairs, scale))
}

/// The factors of an adapter file, and what does not fit.
struct Factors<'a> {
    weights: &'a Weights,
    device: &'a Device,
    used: BTreeSet<String>,
    missing: Vec<String>,
    misshaped: Vec<Misshaped>,
}

impl Factors<'_> {
    fn pair(
        &mut self,
        layer: &str,
        projection: &Projection,
    ) -> Result<Option<(Tensor<2>, Tensor<2>)>, LoadError> {
        let (a, b) = (
            format!("{layer}.lora_A.weight"),
            format!("{layer}.lora_B.weight"),
        );
        let shape = |name: &str| self.weights.shape(name).map(<[usize]>::to_vec);
        let (shape_a, shape_b) = match (shape(&a), shape(&b)) {
            (None, None) => return Ok(None),
            (Some(shape_a), Some(shape_b)) => (shape_a, shape_b),
            (found_a, _) => {
                self.missing.push(if found_a.is_none() {
                    a.clone()
                } else {
                    b.clone()
                });
                self.used.extend([a, b]);
                return Ok(None);
            }
        };
        let rank = shape_a.first().copied().unwrap_or(0);
        let fits = self.check(&a, shape_a, [rank, projection.in_features])
            & self.check(&b, shape_b, [projection.out_features, rank]);
        let pair = if fits {
            Some((self.tensor(&a)?, self.tensor(&b)?))
        } else {
            None
        };
        self.used.extend([a, b]);
        Ok(pair)
    }

    fn check(&mut self, name: &str, found: Vec<usize>, expected: [usize; 2]) -> bool {
        let fits = found == expected;
        if !fits {
            self.misshaped.push(Misshaped {
                name: name.to_owned(),
                found,
                expected: expected.to_vec(),
            });
        }
        fits
    }

    fn tensor(&self, name: &str) -> Result<Tensor<2>, LoadError> {
        // Created as f32 whatever the file has: factors stay wide, the base may be narrow.
        let tensor: Tensor<2> = self.weights.tensor(name, self.device)?;
        debug_assert_eq!(tensor.dtype(), DType::F32);
        Ok(tensor)
    }

    fn finish(self) -> Result<(), LoadError> {
        let names = self.weights.names();
        let unexpected: Vec<String> = names
            .filter(|name| !self.used.contains(*name))
            .map(str::to_owned)
            .collect();
        if self.missing.is_empty() && unexpected.is_empty() && self.misshaped.is_empty() {
            return Ok(());
        }
        Err(LoadError::Mismatch {
            path: self.weights.path().to_owned(),
            missing: self.missing,
            unexpected,
            misshaped: self.misshaped,
        })
    }
}
