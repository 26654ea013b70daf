"""Every component that has cases, by the name in case.toml."""

import flux
import judge
import lora
import method
import pipeline
import qwen_image
import qwen_vl
import text
import vae
import words

MAKERS = {
    "flux_transformer": flux.make,
    "autoencoder_kl": vae.make,
    "qwen_image_transformer": qwen_image.make_transformer,
    "autoencoder_kl_qwen_image": qwen_image.make_autoencoder,
    "t5_encoder": text.make_t5,
    "clip_text": text.make_clip,
    "qwen2_5_vl_vision": qwen_vl.make_vision,
    "qwen2_5_vl": qwen_vl.make_model,
    "image_processor": qwen_vl.make_processor,
    "tokenizer": words.make,
    "scheduler": method.make_schedules,
    "solver": method.make_solvers,
    "advantage": method.make_advantages,
    "nft_loss": method.make_nft_losses,
    "lora_linear": method.make_lora_linears,
    "kontext_pipeline": pipeline.make,
    "qwen_image_edit_pipeline": qwen_image.make_pipeline,
    "peft_folder": lora.make_peft,
    "nft_step": lora.make_steps,
    "judge_chat": judge.make,
}

GIVEN = {"judge_chat": "QWEN_CHAT_TEMPLATE"}
"""Components that need a file which no package has, and the environment variable that names it."""
