//! The section `[lora]`.

use retouch_settings::LoraConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The adapter that is trained, and what it starts from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Keys", into = "Keys")]
pub struct LoraSection {
    /// Its size, and the layers that it changes.
    pub adapter: LoraConfig,
    /// An adapter that is the policy before the first iteration: a PEFT folder, diffusers' folder or file. Empty for a
    /// new one, which changes nothing yet.
    pub init: String,
}

/// The section as it is written: one level of keys.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Keys {
    /// Inner width r of each pair of factors.
    rank: usize,
    /// The update is scaled by `alpha / rank`.
    alpha: f64,
    /// Projections that get an update, by the last segments of their names, as peft matches them: `to_q`, `to_out.0`.
    target_modules: Vec<String>,
    /// An adapter that is the policy before the first iteration: a PEFT folder, diffusers' folder or file. Empty for a
    /// new one, which changes nothing yet.
    init: String,
}

impl Default for Keys {
    fn default() -> Self {
        LoraSection::default().into()
    }
}

impl From<Keys> for LoraSection {
    fn from(keys: Keys) -> Self {
        let Keys {
            rank,
            alpha,
            target_modules,
            init,
        } = keys;
        Self {
            adapter: LoraConfig {
                rank,
                alpha,
                target_modules,
            },
            init,
        }
    }
}

impl From<LoraSection> for Keys {
    fn from(section: LoraSection) -> Self {
        let LoraConfig {
            rank,
            alpha,
            target_modules,
        } = section.adapter;
        Self {
            rank,
            alpha,
            target_modules,
            init: section.init,
        }
    }
}
