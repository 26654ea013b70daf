use anyhow::bail;
use burn::tensor::Device;

use crate::case::Case;
use crate::compare::Outputs;

#[path = "flux.rs"]
mod flux;
#[path = "lora.rs"]
mod lora;
#[path = "method.rs"]
mod method;
#[path = "pipeline.rs"]
mod pipeline;
#[path = "qwen_image.rs"]
mod qwen_image;
#[path = "qwen_vl.rs"]
mod qwen_vl;
#[path = "step.rs"]
mod step;
#[path = "text.rs"]
mod text;
#[path = "vae.rs"]
mod vae;
#[path = "words.rs"]
mod words;

/// What computes a component's outputs.
pub(crate) enum Component {
    /// On the device under test.
    OnDevice(fn(&Case, &Device) -> anyhow::Result<Outputs>),
    /// On the CPU, whatever device trains.
    OnHost(fn(&Case) -> anyhow::Result<Outputs>),
}

use Component::{OnDevice, OnHost};

impl Component {
    /// # Errors
    /// If there is no such component.
    pub(crate) fn named(name: &str) -> anyhow::Result<Self> {
        Ok(match name {
            "flux_transformer" => OnDevice(flux::transformer),
            "peft_folder" => OnDevice(flux::peft_folder),
            "tokenizer" => OnHost(words::tokenizer),
            "advantage" => OnHost(method::advantage),
            "kontext_pipeline" => OnDevice(pipeline::kontext_pipeline),
            "lora_linear" => OnDevice(lora::linear),
            "scheduler" => OnHost(method::scheduler),
            "solver" => OnDevice(method::solver),
            "autoencoder_kl" => OnDevice(vae::autoencoder_kl),
            "qwen_image_transformer" => OnDevice(qwen_image::transformer),
            "autoencoder_kl_qwen_image" => OnDevice(qwen_image::autoencoder),
            "qwen_image_edit_pipeline" => OnDevice(qwen_image::pipeline),
            "t5_encoder" => OnDevice(text::t5_encoder),
            "clip_text" => OnDevice(text::clip_text),
            "qwen2_5_vl_vision" => OnDevice(qwen_vl::vision),
            "qwen2_5_vl" => OnDevice(qwen_vl::model),
            "image_processor" => OnHost(qwen_vl::image_processor),
            "judge_chat" => OnHost(qwen_vl::judge_chat),
            "nft_loss" => OnDevice(method::nft_loss),
            "nft_step" => OnDevice(step::nft_step),
            unknown => bail!("unknown component {unknown:?}: no such component is tested here"),
        })
    }
}
