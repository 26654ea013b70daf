use anyhow::bail;

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

/// Computes what the case's component computes.
///
/// # Errors
/// If the component is unknown or its inputs can't be read.
pub(crate) fn run(case: &Case) -> anyhow::Result<Outputs> {
    match case.component.as_str() {
        "flux_transformer" => flux::transformer(case),
        "peft_folder" => flux::peft_folder(case),
        "tokenizer" => words::tokenizer(case),
        "advantage" => method::advantage(case),
        "kontext_pipeline" => pipeline::kontext_pipeline(case),
        "lora_linear" => lora::linear(case),
        "scheduler" => method::scheduler(case),
        "solver" => method::solver(case),
        "autoencoder_kl" => vae::autoencoder_kl(case),
        "qwen_image_transformer" => qwen_image::transformer(case),
        "autoencoder_kl_qwen_image" => qwen_image::autoencoder(case),
        "qwen_image_edit_pipeline" => qwen_image::pipeline(case),
        "t5_encoder" => text::t5_encoder(case),
        "clip_text" => text::clip_text(case),
        "qwen2_5_vl_vision" => qwen_vl::vision(case),
        "qwen2_5_vl" => qwen_vl::model(case),
        "image_processor" => qwen_vl::image_processor(case),
        "judge_chat" => qwen_vl::judge_chat(case),
        "nft_loss" => method::nft_loss(case),
        "nft_step" => step::nft_step(case),
        unknown => bail!("unknown component {unknown:?}: no such component is tested here"),
    }
}
