use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::LoraConfig;
use crate::weights::LoadError;

/// The fields of peft's configuration that change what an adapter computes. A null stands for the field's default.
///
/// Targets are read off the factors themselves. Patterns are tried in the order of their keys, in which peft and
/// diffusers write them.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct PeftConfig {
    peft_type: Option<String>,
    r: Option<usize>,
    lora_alpha: Option<f64>,
    use_rslora: Option<bool>,
    use_dora: Option<bool>,
    lora_bias: Option<bool>,
    bias: Option<String>,
    init_lora_weights: Option<Value>,
    rank_pattern: Option<BTreeMap<String, usize>>,
    alpha_pattern: Option<BTreeMap<String, f64>>,
    layer_replication: Option<Value>,
    kasa_config: Option<Value>,
    arrow_config: Option<Value>,
    alora_invocation_tokens: Option<Value>,
    use_qalora: Option<bool>,
}

/// peft's rank and alpha where a configuration does not say.
const PEFT_DEFAULT: u8 = 8;

/// Ways to start an adapter that change the base's weights too: without that change the factors
/// mean something else.
const CHANGES_BASE: [&str; 5] = ["pissa", "olora", "loftq", "corda", "lora_ga"];

/// A field, its value, and what is supported.
type Unsupported = (&'static str, String, &'static str);

impl PeftConfig {
    /// Whether the adapter is a plain LoRA; `path` names the file in the error.
    pub(super) fn check(&self, path: &Path) -> Result<(), LoadError> {
        let unsupported = self.unsupported().or_else(|| self.regular_expression());
        match unsupported {
            None => Ok(()),
            Some((field, value, supported)) => {
                Err(LoadError::unsupported(path, field, value, supported))
            }
        }
    }

    fn unsupported(&self) -> Option<Unsupported> {
        let kind = self.peft_type.as_deref().unwrap_or("LORA");
        let bias = self.bias.as_deref().unwrap_or("none");
        let init = self.init_lora_weights.as_ref();
        let init = init.and_then(Value::as_str).unwrap_or("true");
        if kind != "LORA" {
            return Some(("peft_type", kind.to_owned(), "LORA"));
        }
        if self.r == Some(0) {
            return Some(("r", "0".to_owned(), "1 or more"));
        }
        if bias != "none" {
            return Some(("bias", bias.to_owned(), "none"));
        }
        let switches = [
            ("use_dora", self.use_dora),
            ("lora_bias", self.lora_bias),
            ("use_qalora", self.use_qalora),
        ];
        if let Some((field, _)) = switches.iter().find(|(_, on)| *on == Some(true)) {
            return Some((field, "true".to_owned(), "false"));
        }
        if CHANGES_BASE.iter().any(|way| init.starts_with(way)) {
            let supported =
                "adapters over the base's own weights (true, false, gaussian, orthogonal, eva)";
            return Some(("init_lora_weights", init.to_owned(), supported));
        }
        let variants = [
            ("layer_replication", &self.layer_replication),
            ("kasa_config", &self.kasa_config),
            ("arrow_config", &self.arrow_config),
            ("alora_invocation_tokens", &self.alora_invocation_tokens),
        ];
        let found = variants
            .into_iter()
            .find_map(|(field, value)| Some((field, value.as_ref()?)));
        found.map(|(field, value)| (field, value.to_string(), "null"))
    }

    /// A pattern that is more than the name of a layer or the end of one.
    fn regular_expression(&self) -> Option<Unsupported> {
        let is_regex = |pattern: &&String| {
            pattern
                .trim_start_matches('^')
                .contains(|c: char| r"*+?[](){}|\$^".contains(c))
        };
        let ranks = self.rank_pattern.iter().flat_map(BTreeMap::keys);
        let alphas = self.alpha_pattern.iter().flat_map(BTreeMap::keys);
        let supported = "names of layers and ends of such, no regular expressions";
        let found = |field, mut keys: Box<dyn Iterator<Item = &String> + '_>| {
            let pattern = keys.find(is_regex)?;
            Some((field, pattern.clone(), supported))
        };
        found("rank_pattern", Box::new(ranks)).or_else(|| found("alpha_pattern", Box::new(alphas)))
    }

    /// Whether alphas are over the root of the rank.
    pub(super) fn is_rank_stabilized(&self) -> bool {
        self.use_rslora == Some(true)
    }

    /// The alpha of the layer called `name`, whose factors have rank `rank`.
    ///
    /// # Errors
    /// If the configuration says another rank, as peft refuses factors of it.
    pub(super) fn alpha_of(&self, name: &str, rank: usize) -> Result<f64, String> {
        let configured = own(&self.rank_pattern, name).or(self.r);
        let configured = configured.unwrap_or(PEFT_DEFAULT.into());
        if configured != rank {
            return Err(format!(
                "{name} has rank {rank}, its configuration says {configured} (r, rank_pattern)"
            ));
        }
        let alpha = own(&self.alpha_pattern, name).or(self.lora_alpha);
        Ok(alpha.unwrap_or(PEFT_DEFAULT.into()))
    }
}

/// The value of the first pattern that means the layer.
fn own<T: Copy>(patterns: &Option<BTreeMap<String, T>>, name: &str) -> Option<T> {
    let mut patterns = patterns.iter().flatten();
    let found = patterns.find(|(pattern, _)| matches(pattern, name));
    found.map(|(_, value)| *value)
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
    fn absent_fields_and_nulls_have_pefts_defaults() {
        let nulls = json!({
            "peft_type": null, "r": null, "lora_alpha": null, "use_rslora": null, "use_dora": null,
            "lora_bias": null, "bias": null, "init_lora_weights": null, "rank_pattern": null,
            "alpha_pattern": null, "layer_replication": null, "kasa_config": null, "arrow_config": null,
            "alora_invocation_tokens": null, "use_qalora": null, "target_modules": null,
        });
        for config in [read(json!({})), read(nulls)] {
            assert_eq!(config, PeftConfig::default());
            assert_eq!(config.alpha_of("to_q", 8), Ok(8.0));
            assert!(!config.is_rank_stabilized());
            config.check("adapter_config.json".as_ref()).unwrap();
        }
    }

    #[test]
    fn layers_may_have_their_own_alpha_and_rank() {
        let config = read(json!({
            "r": 4, "lora_alpha": 8, "rank_pattern": {"to_k": 2},
            "alpha_pattern": {"attn.to_q": 2.0, "^a.0.to_k": 6.0},
        }));
        for (name, rank, alpha) in [
            ("a.0.attn.to_q", 4, 2.0),
            ("a.0.attn.into_q", 4, 8.0),
            ("a.0.to_k", 2, 6.0),
            ("b.a.0.to_k", 2, 8.0),
        ] {
            assert_eq!(config.alpha_of(name, rank), Ok(alpha), "{name}");
        }
        assert_eq!(
            config.alpha_of("a.0.to_k", 4).unwrap_err(),
            "a.0.to_k has rank 4, its configuration says 2 (r, rank_pattern)"
        );
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
            ("rank_pattern", json!({"blocks.[0-9]+.to_q": 4})),
            ("layer_replication", json!([[0, 4], [2, 5]])),
            ("use_qalora", json!(true)),
            ("r", json!(0)),
        ] {
            let message = error(json!({field: value}));
            assert!(message.contains(&format!("c: {field} = ")), "{message}");
        }
    }
}
