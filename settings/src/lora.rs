use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The size of an adapter and the layers that it changes (LoRA, arXiv 2106.09685).
///
/// The default is the published one: every attention projection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Inner width r of each pair of factors.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Projections that get an update, by the last segments of their names, as peft matches them: `to_q`, `to_out.0`.
    pub target_modules: Vec<String>,
}

impl LoraConfig {
    /// The factor on every pair's output.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Whether the layer called `name` is adapted.
    pub fn targets(&self, name: &str) -> bool {
        let mut targets = self.target_modules.iter();
        targets.any(|target| Self::matches(target, name))
    }

    /// Whether an entry of `target_modules` means the layer called `name`: it is the whole name, or ends it at a dot.
    pub fn matches(target: &str, name: &str) -> bool {
        let rest = name.strip_suffix(target);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }
}

impl Default for LoraConfig {
    fn default() -> Self {
        let attention = [
            "to_q",
            "to_k",
            "to_v",
            "to_out.0",
            "add_q_proj",
            "add_k_proj",
            "add_v_proj",
            "to_add_out",
        ];
        Self {
            rank: 32,
            alpha: 64.0,
            target_modules: attention.map(String::from).into(),
        }
    }
}
