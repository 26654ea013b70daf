//! The formats that adapters are published in, told apart by the names of their tensors.
//!
//! A name is a prefix, a layer and a factor: `transformer.` `transformer_blocks.0.attn.to_q` `.lora_A.weight`. Programs
//! combine them freely, so each of the three has a table of its own; `black_forest` has the layers that are named
//! after FLUX's original code.

/// How a format spells the names of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// `transformer_blocks.0.attn.to_q`
    Dotted,
    /// `transformer_blocks_0_attn_to_q`: which underscores were dots, only the model's own names tell.
    Underscored,
}

impl Spelling {
    /// What stands for the dots of a layer's name.
    pub(super) fn separator(self) -> char {
        match self {
            Self::Dotted => '.',
            Self::Underscored => '_',
        }
    }
}

/// A way to name an adapter's layers.
#[derive(Debug)]
pub(super) struct Format {
    /// The program that writes it.
    pub(super) name: &'static str,
    /// Comes before every layer's name.
    prefix: &'static str,
    pub(super) spelling: Spelling,
}

/// The table; the first format whose prefix a file has is the file's.
static FORMATS: [Format; 8] = [
    Format::new("peft", "base_model.model.", Spelling::Dotted),
    Format::new("diffusers", "transformer.", Spelling::Dotted),
    Format::new("ComfyUI", "diffusion_model.", Spelling::Dotted),
    Format::new("kohya", "lora_unet_", Spelling::Underscored),
    Format::new("OneTrainer", "lora_transformer_", Spelling::Underscored),
    Format::new("LyCORIS", "lycoris_", Spelling::Underscored),
    Format::new("DiffSynth", "pipe.dit.", Spelling::Dotted),
    Format::new("bare layer names", "", Spelling::Dotted),
];

/// For messages.
pub(super) const SUPPORTED: &str = "LoRA of the transformer, as peft, diffusers, ComfyUI, ai-toolkit, kohya, \
                                    OneTrainer, XLabs and DiffSynth name its tensors";

impl Format {
    const fn new(name: &'static str, prefix: &'static str, spelling: Spelling) -> Self {
        Self {
            name,
            prefix,
            spelling,
        }
    }

    /// The format of a file with these tensors.
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a str> + Clone) -> &'static Self {
        let has = |format: &&Self| names.clone().any(|name| name.starts_with(format.prefix));
        let last = &FORMATS[FORMATS.len() - 1];
        FORMATS.iter().find(has).unwrap_or(last)
    }

    /// The layer and the part of it that a tensor is; `None` for a name that is not of this format.
    pub(super) fn tensor<'a>(&self, name: &'a str) -> Option<Tensor<'a>> {
        let rest = name.strip_prefix(self.prefix)?;
        PARTS.iter().find_map(|(ending, part)| {
            let (layer, adapter) = layer(rest, ending)?;
            let part = *part;
            Some(Tensor {
                layer,
                part,
                adapter,
            })
        })
    }
}

/// What a tensor's name says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tensor<'a> {
    /// Its layer, in the format's spelling.
    pub(super) layer: &'a str,
    pub(super) part: Part,
    /// The adapter's name, which a PeftModel's own `state_dict` has: `lora_A.default.weight`.
    pub(super) adapter: Option<&'a str>,
}

/// A part of a layer's adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    A,
    B,
    Alpha,
}

const PARTS: [(&str, Part); 9] = [
    (".lora_A.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_down.weight", Part::A),
    (".lora_up.weight", Part::B),
    (".lora.down.weight", Part::A),
    (".lora.up.weight", Part::B),
    // XLabs: `processor.qkv_lora1.down.weight`
    (".down.weight", Part::A),
    (".up.weight", Part::B),
    (".alpha", Part::Alpha),
];

/// The layer before `ending`, and the name of the adapter before its `.weight`, if one is there.
fn layer<'a>(name: &'a str, ending: &str) -> Option<(&'a str, Option<&'a str>)> {
    if let Some(layer) = name.strip_suffix(ending) {
        return (!layer.is_empty()).then_some((layer, None));
    }
    let factor = ending.strip_suffix(".weight")?;
    let (head, adapter) = name.strip_suffix(".weight")?.rsplit_once('.')?;
    let layer = head.strip_suffix(factor)?;
    Some((layer, Some(adapter)))
}

/// Kinds of adapters that are not supported, by what only their tensors' names have.
const REFUSED: [(&str, &[&str]); 8] = [
    ("a LoHa adapter", &[".hada_w", ".hada_t"]),
    ("a LoKr adapter", &[".lokr_w", ".lokr_t"]),
    ("a DoRA adapter", &[".dora_scale", ".lora_magnitude_vector"]),
    ("an OFT adapter", &[".oft_", ".boft_"]),
    (
        "a LoRA with biases",
        &[".lora_A.bias", ".lora_B.bias", ".lora_up.bias"],
    ),
    ("a LoRA with a core tensor (LoCon)", &[".lora_mid."]),
    (
        "differences of whole weights",
        &[".diff.", ".diff_b.", ".set_weight."],
    ),
    ("a FLUX control LoRA", &["query_norm.scale"]),
];

/// Where the tensors of text encoders begin.
const TEXT_ENCODERS: [&str; 7] = [
    "text_encoder.",
    "text_encoder_2.",
    "text_encoders.",
    "lora_te_",
    "lora_te1_",
    "lora_te2_",
    "lora_te3_",
];

/// What a file with a tensor of this name is, if that is not supported.
pub(super) fn refused(name: &str) -> Option<&'static str> {
    if TEXT_ENCODERS.iter().any(|prefix| name.starts_with(prefix)) {
        return Some("a LoRA of the text encoders (as well)");
    }
    let name = format!("{name}.");
    let has = |marks: &[&str]| marks.iter().any(|mark| name.contains(mark));
    let kind = REFUSED.iter().find(|(_, marks)| has(marks));
    kind.map(|(kind, _)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_programs_are_taken_apart() {
        let default = Some("default");
        for (name, format, layer, part, adapter) in [
            (
                "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight",
                "peft",
                "transformer_blocks.0.attn.to_q",
                Part::A,
                None,
            ),
            (
                "base_model.model.transformer_blocks.0.attn.to_q.lora_B.default.weight",
                "peft",
                "transformer_blocks.0.attn.to_q",
                Part::B,
                default,
            ),
            (
                "transformer.single_transformer_blocks.37.proj_mlp.lora_B.weight",
                "diffusers",
                "single_transformer_blocks.37.proj_mlp",
                Part::B,
                None,
            ),
            (
                "transformer.transformer_blocks.0.attn.to_out.0.lora.down.weight",
                "diffusers",
                "transformer_blocks.0.attn.to_out.0",
                Part::A,
                None,
            ),
            (
                "transformer.transformer_blocks.0.attn.to_q.alpha",
                "diffusers",
                "transformer_blocks.0.attn.to_q",
                Part::Alpha,
                None,
            ),
            (
                "diffusion_model.transformer_blocks.59.img_mlp.net.2.lora_A.weight",
                "ComfyUI",
                "transformer_blocks.59.img_mlp.net.2",
                Part::A,
                None,
            ),
            (
                "diffusion_model.double_blocks.0.img_attn.qkv.lora_up.weight",
                "ComfyUI",
                "double_blocks.0.img_attn.qkv",
                Part::B,
                None,
            ),
            (
                "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
                "kohya",
                "double_blocks_0_img_attn_qkv",
                Part::A,
                None,
            ),
            (
                "lora_unet_single_blocks_7_linear1.alpha",
                "kohya",
                "single_blocks_7_linear1",
                Part::Alpha,
                None,
            ),
            (
                "lora_transformer_transformer_blocks_0_attn_to_add_out.lora_up.weight",
                "OneTrainer",
                "transformer_blocks_0_attn_to_add_out",
                Part::B,
                None,
            ),
            (
                "lycoris_transformer_blocks_0_attn_to_q.lora_down.weight",
                "LyCORIS",
                "transformer_blocks_0_attn_to_q",
                Part::A,
                None,
            ),
            (
                "transformer_blocks.0.img_mod.1.lora_A.default.weight",
                "bare layer names",
                "transformer_blocks.0.img_mod.1",
                Part::A,
                default,
            ),
            (
                "double_blocks.3.processor.qkv_lora1.down.weight",
                "bare layer names",
                "double_blocks.3.processor.qkv_lora1",
                Part::A,
                None,
            ),
        ] {
            let found = Format::of([name].into_iter());
            assert_eq!(found.name, format, "{name}");
            let tensor = Tensor {
                layer,
                part,
                adapter,
            };
            assert_eq!(found.tensor(name), Some(tensor), "{name}");
        }
        let bare = Format::of(["x"].into_iter());
        for name in [
            "x",
            "transformer_blocks.0.norm.weight",
            ".lora_A.weight",
            "x.alphas",
        ] {
            assert_eq!(bare.tensor(name), None, "{name}");
        }
    }

    #[test]
    fn kinds_that_are_no_plain_lora_are_known_by_their_names() {
        for (name, kind) in [
            ("lora_unet_double_blocks_0_img_attn_qkv.hada_w1_a", "LoHa"),
            ("lycoris_transformer_blocks_0_attn_to_q.lokr_w1", "LoKr"),
            ("lora_unet_single_blocks_0_linear1.dora_scale", "DoRA"),
            (
                "base_model.model.transformer_blocks.0.attn.to_q.lora_magnitude_vector",
                "DoRA",
            ),
            (
                "transformer.transformer_blocks.0.attn.to_q.lora_B.bias",
                "biases",
            ),
            (
                "diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale.diff",
                "whole weights",
            ),
            (
                "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
                "text encoders",
            ),
            (
                "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
                "text encoders",
            ),
        ] {
            let found = refused(name).unwrap_or("");
            assert!(found.contains(kind), "{name}: {found}");
        }
        assert_eq!(
            refused("transformer.transformer_blocks.0.attn.to_q.lora_A.weight"),
            None
        );
    }
}
