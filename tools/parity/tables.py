"""Writes tables/: names and shapes of the published models' tensors at full size.

    python tools/parity/tables.py

The configurations are the published ones, written down here; where one comes from elsewhere, its table's `source` says
so. The modules are made by diffusers and transformers on torch's meta device, which keeps shapes and no numbers, so that
it takes seconds and no memory. `models/tests/published_tables.rs` compares them with what our loaders expect.
"""

import json
import os
import pathlib
import re

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage, FluxTransformer2DModel, QwenImageTransformer2DModel
from transformers import (
    CLIPTextConfig, CLIPTextModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, T5Config, T5EncoderModel,
)
from transformers.core_model_loading import revert_weight_conversion

TABLES = pathlib.Path(__file__).parent / "tables"

FLUX_TRANSFORMER = {
    "_class_name": "FluxTransformer2DModel", "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": True, "in_channels": 64, "joint_attention_dim": 4096, "num_attention_heads": 24,
    "num_layers": 19, "num_single_layers": 38, "out_channels": 64, "patch_size": 1, "pooled_projection_dim": 768,
}

FLUX_VAE = {
    "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "force_upcast": True, "in_channels": 3, "latent_channels": 16,
    "latents_mean": None, "latents_std": None, "layers_per_block": 2, "mid_block_add_attention": True,
    "norm_num_groups": 32, "out_channels": 3, "sample_size": 1024, "scaling_factor": 0.3611, "shift_factor": 0.1159,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "use_post_quant_conv": False, "use_quant_conv": False,
}

QWEN_TRANSFORMER = {
    "_class_name": "QwenImageTransformer2DModel", "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": False, "in_channels": 64, "joint_attention_dim": 3584, "num_attention_heads": 24,
    "num_layers": 60, "out_channels": 16, "patch_size": 2,
}

QWEN_VAE = {
    "_class_name": "AutoencoderKLQwenImage", "attn_scales": [], "base_dim": 96, "dim_mult": [1, 2, 4, 4], "dropout": 0.0,
    "latents_mean": [
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
        -0.9497, 0.2503, -0.2921,
    ],
    "latents_std": [
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
        2.8251, 1.916,
    ],
    "num_res_blocks": 2, "temperal_downsample": [False, True, True], "z_dim": 16,
}

T5_XXL = {
    "architectures": ["T5EncoderModel"], "d_ff": 10240, "d_kv": 64, "d_model": 4096, "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new", "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0, "is_encoder_decoder": True, "is_gated_act": True, "layer_norm_epsilon": 1e-06,
    "model_type": "t5", "num_decoder_layers": 24, "num_heads": 64, "num_layers": 24, "pad_token_id": 0,
    "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "vocab_size": 32128,
}

CLIP_L = {
    "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
    "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768,
    "torch_dtype": "bfloat16", "vocab_size": 49408,
}


def qwen2_5_vl(vision_intermediate_size, **text):
    """The flat layout of the published files."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "image_token_id": 151655, "initializer_range": 0.02,
        "max_position_embeddings": 128000, "model_type": "qwen2_5_vl", "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": [16, 24, 24], "type": "mrope"}, "rope_theta": 1000000.0,
        "sliding_window": 32768, "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False,
        "video_token_id": 151656, "vision_end_token_id": 151653, "vision_start_token_id": 151652,
        "vision_token_id": 151654,
        "vision_config": {
            "depth": 32, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu", "hidden_size": 1280,
            "in_chans": 3, "intermediate_size": vision_intermediate_size, "num_heads": 16,
            "out_hidden_size": text["hidden_size"], "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
            "temporal_patch_size": 2, "tokens_per_second": 2, "window_size": 112,
        },
        **text,
    }


QWEN_3B = qwen2_5_vl(
    3420, hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
    num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True,
)
QWEN_7B = qwen2_5_vl(
    3420, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
    num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False,
)
QWEN_32B = qwen2_5_vl(
    3456, hidden_size=5120, intermediate_size=27648, num_hidden_layers=64, num_attention_heads=40,
    num_key_value_heads=8, vocab_size=152064, tie_word_embeddings=False,
)


def diffusers_model(cls):
    return lambda config: own_tensors(cls.from_config(config))


CLASS_DEFAULTS = "the class's defaults in diffusers, the published file not having been at hand"


def by_default(cls):
    """A model whose configuration is known from its class's defaults alone."""

    def make(config):
        defaults = json.loads(cls().to_json_string())
        differing = {name for name, value in config.items() if defaults[name] != value}
        assert not differing, f"{cls.__name__}: {differing} differ from the class's defaults"
        return own_tensors(cls.from_config(config))

    return make


def t5(config):
    return own_tensors(T5EncoderModel(T5Config(**config)))


def clip(config):
    """transformers 5 dropped the prefix that published files have."""
    tensors = own_tensors(CLIPTextModel(CLIPTextConfig(**config)))
    return {f"text_model.{name}": tensor for name, tensor in tensors.items()}


def qwen(config):
    """Under the names that save_pretrained writes, which are those of the published files."""
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
    return revert_weight_conversion(model, own_tensors(model))


def own_tensors(module):
    """What a checkpoint stores: a tensor under several names counts once."""
    stored = module.state_dict(keep_vars=True)
    seen = set()
    return {name: t for name, t in stored.items() if not (id(t) in seen or seen.add(id(t)))}


PUBLISHED = {
    "flux1-kontext-dev_transformer": ("flux_transformer", FLUX_TRANSFORMER, diffusers_model(FluxTransformer2DModel)),
    "flux1-kontext-dev_vae": ("autoencoder_kl", FLUX_VAE, diffusers_model(AutoencoderKL)),
    "flux1-kontext-dev_text_encoder": ("clip_text", CLIP_L, clip),
    "flux1-kontext-dev_text_encoder_2": ("t5_encoder", T5_XXL, t5),
    "qwen-image-edit-2509_transformer": (
        "qwen_image_transformer", QWEN_TRANSFORMER, by_default(QwenImageTransformer2DModel), CLASS_DEFAULTS,
    ),
    "qwen-image-edit-2509_vae": ("autoencoder_kl_qwen_image", QWEN_VAE, by_default(AutoencoderKLQwenImage), CLASS_DEFAULTS),
    "qwen2.5-vl-3b-instruct": ("qwen2_5_vl", QWEN_3B, qwen),
    "qwen2.5-vl-7b-instruct": ("qwen2_5_vl", QWEN_7B, qwen),
    "qwen2.5-vl-32b-instruct": ("qwen2_5_vl", QWEN_32B, qwen),
}


def folded(shapes):
    """Layers that are alike in one line: `blocks.{0..18}.attn.to_q.weight` stands for nineteen names."""
    layers = {}
    for name, shape in shapes.items():
        match = re.search(r"(?<=\.)\d+(?=\.)", name)
        head, number, tail = (name[: match.start()], int(match[0]), name[match.end():]) if match else (name, None, "")
        layers.setdefault((head, tail, tuple(shape)), []).append(number)
    lines = {}
    for (head, tail, shape), numbers in layers.items():
        for first, last in runs(numbers):
            inner = "" if first is None else str(first) if first == last else f"{{{first}..{last}}}"
            lines[f"{head}{inner}{tail}"] = list(shape)
    return lines


def runs(numbers):
    if numbers == [None]:
        return [(None, None)]
    pairs = []
    for number in sorted(numbers):
        if pairs and pairs[-1][1] == number - 1:
            pairs[-1] = (pairs[-1][0], number)
        else:
            pairs.append((number, number))
    return pairs


def write(name, component, config, make, source=None):
    with torch.device("meta"):
        tensors = make(config)
    shapes = {key: list(tensor.shape) for key, tensor in tensors.items()}
    parameters = sum(tensor.numel() for tensor in tensors.values())
    head = {"component": component, "parameters": parameters, "tensors": len(shapes), "config": config}
    if source:
        head["source"] = source
    text = json.dumps(head, indent=1, sort_keys=True)[:-2]
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(shape)}" for key, shape in sorted(folded(shapes).items()))
    (TABLES / f"{name}.json").write_text(f'{text},\n "shapes": {{\n{lines}\n }}\n}}\n')
    print(f"{name}: {len(shapes)} tensors, {parameters:,} parameters")


if __name__ == "__main__":
    TABLES.mkdir(exist_ok=True)
    for name, entry in PUBLISHED.items():
        write(name, *entry)
