//! Named starting points.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A named starting point: a partial run file under the user's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Preset {
    /// The defaults alone.
    #[default]
    #[serde(rename = "none")]
    None,
    /// The small editor and judge of this repository, on a CPU.
    #[serde(rename = "tiny")]
    Tiny,
    /// FLUX.1-Kontext-dev with the published settings.
    #[serde(rename = "flux-kontext-dev")]
    FluxKontextDev,
    /// Qwen-Image-Edit-2509 with the published settings.
    #[serde(rename = "qwen-image-edit-2509")]
    QwenImageEdit2509,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 4] = [
        Self::None,
        Self::Tiny,
        Self::FluxKontextDev,
        Self::QwenImageEdit2509,
    ];

    /// Its name in the run file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tiny => "tiny",
            Self::FluxKontextDev => "flux-kontext-dev",
            Self::QwenImageEdit2509 => "qwen-image-edit-2509",
        }
    }

    /// The preset of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.as_str() == name)
    }

    /// Its partial run file.
    pub(super) fn toml(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Tiny => include_str!("presets/tiny.toml"),
            Self::FluxKontextDev => include_str!("presets/flux-kontext-dev.toml"),
            Self::QwenImageEdit2509 => include_str!("presets/qwen-image-edit-2509.toml"),
        }
    }
}
