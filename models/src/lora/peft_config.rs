use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::LoraConfig;
use crate::weights::LoadError;

/// The fields of peft's configuration that change what an adapter computes.
///
/// Ranks, those of `rank_pattern` included, and targets are read off the factors themselves.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct PeftConfig {
    peft_type: Option<String>,
    #[serde(default = "peft_default")]
    pub(super) r: usize,
    #[serde(default = "peft_default")]
    pub(super) lora_alpha: f64,
    use_rslora: bool,
    use_dora: bool,
    lora_bias: bool,
    bias: Option<String>,
    init_lora_weights: Option<Value>,
    alpha_pattern: BTreeMap<String, f64>,
}

fn peft_default<T: From<u8>>() -> T {
    T::from(8)
}

/// Ways to start an adapter that change the base's weights too: without that change the factors
/// mean something else.
const CHANGES_BASE: [&str; 5] = ["pissa", "olora", "loftq", "corda", "lora_ga"];

impl PeftConfig {
    /// What diffusers assumes of a file without metadata.
    pub(super) fn alpha_is_rank(rank: usize) -> Self {
        Self {
            r: rank,
            lora_alpha: rank as f64,
            ..Self::default()
        }
    }

    /// Whether the adapter is a plain LoRA; `path` names the file in the error.
    pub(super) fn check(&self, path: &Path) -> Result<(), LoadError> {
        match self.unsupported() {
            None => Ok(()),
            Some((field, value, supported)) => {
                Err(LoadError::unsupported(path, field, value, supported))
            }
        }
    }

    fn unsupported(&self) -> Option<(&'static str, String, &'static str)> {
        let kind = self.peft_type.as_deref().unwrap_or("LORA");
        let bias = self.bias.as_deref().unwrap_or("none");
        let init = self
            .init_lora_weights
            .as_ref()
            .and_then(Value::as_str)
            .unwrap_or("true");
        let is_regex = |pattern: &&String| {
            pattern
                .trim_start_matches('^')
                .contains(|c: char| r"*+?[](){}|\$^".contains(c))
        };
        if kind != "LORA" {
            return Some(("peft_type", kind.to_owned(), "LORA"));
        }
        if self.r == 0 {
            return Some(("r", "0".to_owned(), "1 or more"));
        }
        if bias != "none" {
            return Some(("bias", bias.to_owned(), "none"));
        }
        if self.use_dora {
            return Some(("use_dora", "true".to_owned(), "false"));
        }
        if self.lora_bias {
            return Some(("lora_bias", "true".to_owned(), "false"));
        }
        if CHANGES_BASE.iter().any(|way| init.starts_with(way)) {
            let supported =
                "adapters over the base's own weights (true, false, gaussian, orthogonal, eva)";
            return Some(("init_lora_weights", init.to_owned(), supported));
        }
        let pattern = self.alpha_pattern.keys().find(is_regex)?;
        Some((
            "alpha_pattern",
            pattern.clone(),
            "names of layers and ends of such, no regular expressions",
        ))
    }

    /// The factor on the outputs of most layers.
    pub(super) fn scale(&self) -> f64 {
        self.scale_at(self.lora_alpha, self.r)
    }

    /// The factor of the layer called `name`, whose factors have rank `rank`.
    pub(super) fn scale_of(&self, name: &str, rank: usize) -> f64 {
        let own = self
            .alpha_pattern
            .iter()
            .find(|(pattern, _)| matches(pattern, name));
        self.scale_at(own.map_or(self.lora_alpha, |(_, alpha)| *alpha), rank)
    }

    fn scale_at(&self, alpha: f64, rank: usize) -> f64 {
        let rank = rank as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

/// Whether peft's `pattern` means the layer: its whole name, or, without a `^`, an end of it at a dot.
fn matches(pattern: &str, name: &str) -> bool {
    if let Some(whole) = pattern.strip_prefix('^') {
        return whole == name;
    }
    let rest = name.strip_suffix(pattern);
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// An adapter's configuration as peft writes it.
pub(super) fn peft_json(config: &LoraConfig) -> Value {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> PeftConfig {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn absent_fields_have_pefts_defaults() {
        let config = read(json!({}));
        assert_eq!((config.r, config.lora_alpha, config.scale()), (8, 8.0, 1.0));
        config.check("adapter_config.json".as_ref()).unwrap();
    }

    #[test]
    fn layers_may_have_their_own_alpha_and_rank() {
        let config = read(json!({
            "r": 4, "lora_alpha": 8, "alpha_pattern": {"attn.to_q": 2.0, "^a.0.to_k": 6.0},
        }));
        assert_eq!(config.scale_of("a.0.attn.to_q", 4), 0.5);
        assert_eq!(config.scale_of("a.0.attn.into_q", 4), 2.0);
        assert_eq!(config.scale_of("a.0.to_k", 2), 3.0);
        assert_eq!(config.scale_of("b.a.0.to_k", 2), 4.0);
        let square_root = read(json!({"r": 4, "lora_alpha": 8, "use_rslora": true}));
        assert_eq!(square_root.scale(), 4.0);
    }

    #[test]
    fn what_is_no_plain_lora_is_refused_by_field_and_value() {
        let error = |value: Value| read(value).check("c".as_ref()).unwrap_err().to_string();
        assert_eq!(
            error(json!({"peft_type": "LOHA"})),
            "c: peft_type = LOHA is not supported; supported: LORA"
        );
        for (field, value) in [
            ("bias", json!("all")),
            ("use_dora", json!(true)),
            ("lora_bias", json!(true)),
            ("init_lora_weights", json!("pissa_niter_16")),
            ("alpha_pattern", json!({"blocks.[0-9]+.to_q": 4.0})),
            ("r", json!(0)),
        ] {
            let message = error(json!({field: value}));
            assert!(message.contains(&format!("c: {field} = ")), "{message}");
        }
    }
}
