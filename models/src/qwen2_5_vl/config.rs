//! `config.json` of Qwen2.5-VL, in the published flat layout and in transformers 5's nested one.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::weights::{PretrainedConfig, Spelled, Spellings};

/// The whole model's configuration.
///
/// It is read from either layout: text fields at the top level with `rope_theta` and `rope_scaling` (the published
/// checkpoints), or under `text_config` with `rope_parameters` (transformers 5). It is written in the flat layout,
/// which every version of transformers reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Qwen2_5VlConfig {
    /// The language model.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// The token that stands for one merged image patch.
    pub image_token_id: u32,
    /// The token before the first patch of an image.
    pub vision_start_token_id: u32,
    /// The token after the last patch of an image.
    pub vision_end_token_id: u32,
    /// Whether the output layer is the embedding matrix.
    pub tie_word_embeddings: bool,
}

/// The language model: grouped-query attention, three-axis rotary positions, gated SiLU MLP.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How many frequencies follow the temporal, height and width positions; sums to half the head size.
    pub mrope_section: Vec<usize>,
    /// The MLP's activation.
    pub hidden_act: Activation,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
}

/// The vision tower: windowed attention with some full layers, two-axis rotary positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VisionConfig {
    /// Number of blocks.
    pub depth: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Colour channels.
    #[serde(default = "default_in_channels")]
    pub in_channels: usize,
    /// Width of the output, the language model's `hidden_size`.
    pub out_hidden_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Side of the square of patches that becomes one token.
    pub spatial_merge_size: usize,
    /// Frames in a patch; a still image is repeated.
    pub temporal_patch_size: usize,
    /// Side of an attention window in pixels.
    pub window_size: usize,
    /// The blocks whose attention spans the whole image.
    pub fullatt_block_indexes: Vec<usize>,
    /// Standard deviation of new weights.
    #[serde(default = "default_initializer_range")]
    pub initializer_range: f64,
    /// The MLP's activation.
    #[serde(default)]
    pub hidden_act: Activation,
}

impl Spellings for VisionConfig {
    const SPELLINGS: &'static [[&'static str; 2]] = &[["in_channels", "in_chans"]];
}

/// The activations that the model knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// `x * sigmoid(x)`
    #[default]
    Silu,
}

impl TextConfig {
    /// Features of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

impl VisionConfig {
    /// Features of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    /// Numbers in a flattened patch.
    pub fn patch_features(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Patches that become one token.
    pub fn merge_unit(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }

    /// Side of an attention window in merged tokens.
    pub fn merged_window(&self) -> usize {
        self.window_size / self.spatial_merge_size / self.patch_size
    }

    /// Checks what the tower can't do without.
    ///
    /// # Errors
    /// The first field that does not fit, in words.
    pub fn validate(&self) -> Result<(), String> {
        let sizes = [
            ("patch_size", self.patch_size),
            ("spatial_merge_size", self.spatial_merge_size),
            ("temporal_patch_size", self.temporal_patch_size),
        ];
        if let Some((name, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return Err(format!("vision_config.{name} = 0, expected at least 1"));
        }
        divides(
            "vision_config.num_heads",
            self.num_heads,
            "hidden_size",
            self.hidden_size,
        )?;
        divides("4", 4, "the vision head size", self.head_dim())?;
        if self.merged_window() == 0 {
            return Err(format!(
                "vision_config.window_size = {} holds no merged patch of {} pixels",
                self.window_size,
                self.patch_size * self.spatial_merge_size
            ));
        }
        Ok(())
    }
}

fn default_in_channels() -> usize {
    3
}

fn default_initializer_range() -> f64 {
    0.02
}

fn divides(part_name: &str, part: usize, whole_name: &str, whole: usize) -> Result<(), String> {
    if part == 0 || whole == 0 || !whole.is_multiple_of(part) {
        return Err(format!(
            "{part_name} = {part} does not divide {whole_name} = {whole}"
        ));
    }
    Ok(())
}

/// The text fields as files have them.
#[derive(Deserialize)]
struct TextFields {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    #[serde(default)]
    hidden_act: Activation,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    #[serde(default)]
    use_sliding_window: Option<bool>,
    #[serde(default = "default_initializer_range")]
    initializer_range: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeFields>,
    rope_parameters: Option<RopeFields>,
}

#[derive(Deserialize)]
struct RopeFields {
    rope_theta: Option<f64>,
    mrope_section: Vec<usize>,
    rope_type: Option<String>,
    #[serde(rename = "type")]
    old_type: Option<String>,
}

impl TryFrom<TextFields> for TextConfig {
    type Error = String;

    fn try_from(fields: TextFields) -> Result<Self, String> {
        if fields.use_sliding_window == Some(true) {
            return Err("use_sliding_window = true is not supported; supported: false".to_owned());
        }
        let Some(rope) = fields.rope_parameters.or(fields.rope_scaling) else {
            return Err("rope_scaling or rope_parameters with mrope_section is missing".to_owned());
        };
        let rope_type = rope.rope_type.or(rope.old_type);
        let rope_type = rope_type.unwrap_or_else(|| "default".to_owned());
        if !matches!(rope_type.as_str(), "default" | "mrope") {
            return Err(format!(
                "rope type {rope_type} is not supported; supported: default, mrope"
            ));
        }
        Ok(Self {
            vocab_size: fields.vocab_size,
            hidden_size: fields.hidden_size,
            intermediate_size: fields.intermediate_size,
            num_hidden_layers: fields.num_hidden_layers,
            num_attention_heads: fields.num_attention_heads,
            num_key_value_heads: fields
                .num_key_value_heads
                .unwrap_or(fields.num_attention_heads),
            max_position_embeddings: fields.max_position_embeddings,
            rms_norm_eps: fields.rms_norm_eps,
            rope_theta: rope.rope_theta.or(fields.rope_theta).unwrap_or(1_000_000.0),
            mrope_section: rope.mrope_section,
            hidden_act: fields.hidden_act,
            initializer_range: fields.initializer_range,
        })
    }
}

impl TextConfig {
    fn validate(&self) -> Result<(), String> {
        divides(
            "num_attention_heads",
            self.num_attention_heads,
            "hidden_size",
            self.hidden_size,
        )?;
        divides(
            "num_key_value_heads",
            self.num_key_value_heads,
            "num_attention_heads",
            self.num_attention_heads,
        )?;
        let frequencies: usize = self.mrope_section.iter().sum();
        if self.head_dim() != 2 * frequencies {
            return Err(format!(
                "mrope_section = {:?} sums to {frequencies}, half the head size is {}",
                self.mrope_section,
                self.head_dim() as f64 / 2.0
            ));
        }
        if self.num_hidden_layers == 0 {
            return Err("num_hidden_layers = 0, at least 1 is needed".to_owned());
        }
        Ok(())
    }
}

impl Qwen2_5VlConfig {
    /// Checks what the model can't do without.
    ///
    /// # Errors
    /// The first field that does not fit, in words.
    pub fn validate(&self) -> Result<(), String> {
        self.text.validate()?;
        self.vision.validate()?;
        if self.vision.out_hidden_size != self.text.hidden_size {
            return Err(format!(
                "vision_config.out_hidden_size = {} differs from hidden_size = {}",
                self.vision.out_hidden_size, self.text.hidden_size
            ));
        }
        Ok(())
    }
}

impl PretrainedConfig for Qwen2_5VlConfig {
    const CLASS: &'static str = "Qwen2_5_VLForConditionalGeneration";
}

#[derive(Deserialize)]
struct TopFields {
    vision_config: Spelled<VisionConfig>,
    image_token_id: u32,
    vision_start_token_id: u32,
    vision_end_token_id: u32,
    #[serde(default)]
    tie_word_embeddings: bool,
}

impl TryFrom<Value> for Qwen2_5VlConfig {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let text = value.get("text_config").unwrap_or(&value);
        let tied_below = text.get("tie_word_embeddings") == Some(&Value::Bool(true));
        let text: TextFields = parse(text)?;
        let top: TopFields = parse(&value)?;
        let config = Self {
            text: text.try_into()?,
            vision: top.vision_config.0,
            image_token_id: top.image_token_id,
            vision_start_token_id: top.vision_start_token_id,
            vision_end_token_id: top.vision_end_token_id,
            tie_word_embeddings: top.tie_word_embeddings || tied_below,
        };
        config.validate()?;
        Ok(config)
    }
}

fn parse<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, String> {
    T::deserialize(value).map_err(|error| error.to_string())
}

impl From<Qwen2_5VlConfig> for Value {
    fn from(config: Qwen2_5VlConfig) -> Self {
        let text = config.text;
        json!({
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "hidden_act": text.hidden_act,
            "max_position_embeddings": text.max_position_embeddings,
            "rms_norm_eps": text.rms_norm_eps,
            "initializer_range": text.initializer_range,
            "use_sliding_window": false,
            "rope_theta": text.rope_theta,
            "rope_scaling": { "type": "mrope", "mrope_section": text.mrope_section },
            "vision_config": config.vision,
            "image_token_id": config.image_token_id,
            "vision_start_token_id": config.vision_start_token_id,
            "vision_end_token_id": config.vision_end_token_id,
            "tie_word_embeddings": config.tie_word_embeddings,
            // Left out, these would be the published vocabulary's.
            "bos_token_id": null,
            "eos_token_id": null,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat() -> Value {
        json!({
            "vocab_size": 97, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6, "rope_theta": 5000.0,
            "rope_scaling": { "type": "mrope", "mrope_section": [2, 1, 1] },
            "vision_config": {
                "depth": 3, "hidden_size": 32, "intermediate_size": 44, "num_heads": 2, "in_chans": 3,
                "out_hidden_size": 32, "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2,
                "window_size": 16, "fullatt_block_indexes": [1],
            },
            "image_token_id": 3, "vision_start_token_id": 4, "vision_end_token_id": 5,
        })
    }

    fn read(value: Value) -> Result<Qwen2_5VlConfig, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn both_layouts_give_the_same_config() {
        let flat = flat();
        let mut text = flat.as_object().unwrap().clone();
        let mut nested = serde_json::Map::new();
        for key in [
            "vision_config",
            "image_token_id",
            "vision_start_token_id",
            "vision_end_token_id",
        ] {
            nested.insert(key.to_owned(), text.remove(key).unwrap());
        }
        text.remove("rope_scaling");
        text.remove("rope_theta");
        text.insert(
            "rope_parameters".to_owned(),
            json!({ "rope_theta": 5000.0, "rope_type": "default", "mrope_section": [2, 1, 1] }),
        );
        nested.insert("text_config".to_owned(), Value::Object(text));
        assert_eq!(read(flat), read(Value::Object(nested)));
    }

    #[test]
    fn a_field_may_be_there_in_both_spellings_if_they_agree() {
        let mut both = flat();
        both["vision_config"]["in_channels"] = json!(3);
        assert_eq!(read(both.clone()), read(flat()));
        both["vision_config"]["in_channels"] = json!(1);
        let error = read(both).unwrap_err();
        assert!(
            error.contains("in_channels = 1 and in_chans = 3"),
            "{error}"
        );
    }

    #[test]
    fn a_config_survives_being_written() {
        let config = read(flat()).unwrap();
        assert_eq!(
            read(serde_json::to_value(&config).unwrap()).unwrap(),
            config
        );
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let mut value = flat();
        value["use_sliding_window"] = json!(true);
        assert!(read(value).unwrap_err().contains("use_sliding_window"));
        let mut value = flat();
        value["rope_scaling"]["mrope_section"] = json!([2, 2, 1]);
        assert!(read(value).unwrap_err().contains("[2, 2, 1] sums to 5"));
        let mut value = flat();
        value["vision_config"]["spatial_merge_size"] = json!(0);
        assert!(read(value).unwrap_err().contains("spatial_merge_size = 0"));
        let mut value = flat();
        value["vision_config"]["hidden_act"] = json!("gelu");
        assert!(read(value).unwrap_err().contains("`gelu`"));
    }
}
