"""qwen_image_transformer, autoencoder_kl_qwen_image and qwen_image_edit_pipeline: diffusers' Qwen-Image, as editing uses it."""

import json

import torch
from diffusers import (
    AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline, QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as reference
from PIL import Image
from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

import words
from common import Case, generator, image, public_config, randn, randomise, round_to_bf16, write_bf16, write_json
from qwen_vl import PUBLISHED_PROCESSOR, nested


def transformer(seed, **config):
    return randomise(QwenImageTransformer2DModel(**config), seed)


def padded_at_the_end(lengths):
    return torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]


def transformer_inputs(model, seed, shapes, mask, timestep):
    """`mask` tells the real text tokens of each row; the rest is padding, and padding is noise too."""
    batch, longest = mask.shape
    tokens = sum(frames * height * width for frames, height, width in shapes)
    return {
        "hidden_states": randn(seed, batch, tokens, model.config.in_channels),
        "encoder_hidden_states": randn(seed + 1, batch, longest, model.config.joint_attention_dim),
        "encoder_hidden_states_mask": mask.long(),
        "timestep": torch.tensor(timestep),
        "img_shapes": torch.tensor([shapes] * batch),
    }


def write_transformer(variant, model, seed, shapes, mask, timestep, dtype=torch.float32):
    inputs = transformer_inputs(model, seed, shapes, mask, timestep)
    case = Case("qwen_image_transformer", variant)
    case.config(public_config(model))
    case.weights({name: weight.to(dtype) for name, weight in model.state_dict().items()})
    with torch.no_grad():
        case.outputs(sample(model, **inputs))
    case.inputs(**inputs)
    case.save()


STORED = ["hidden_states", "encoder_hidden_states"]
"""Inputs that the pipeline keeps in the transformer's type; times are f32."""


def sample(model, img_shapes, **inputs):
    return {"sample": model(**inputs, img_shapes=img_shapes.tolist()).sample}


def make_transformer():
    model = transformer(
        601, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, axes_dims_rope=(4, 6, 6),
    )
    write_transformer("padded_text", model, 602, [(1, 4, 6), (1, 3, 5)], padded_at_the_end([7, 4]), [0.9, 0.35])

    model = round_to_bf16(transformer(
        611, in_channels=12, out_channels=3, num_layers=1, attention_head_dim=10, num_attention_heads=3,
        joint_attention_dim=20, axes_dims_rope=(2, 4, 4),
    ))
    shapes = [(1, 5, 7), (1, 3, 3), (1, 7, 2), (1, 1, 9)]
    write_transformer("three_sources_bf16", model, 612, shapes, padded_at_the_end([9]), [1.0], torch.bfloat16)

    model = transformer(
        621, in_channels=6, out_channels=None, patch_size=1, num_layers=1, attention_head_dim=8,
        num_attention_heads=3, joint_attention_dim=17, axes_dims_rope=(2, 2, 4),
    )
    mask = torch.tensor([[0, 0, 0, 1, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 1]])
    write_transformer("no_source_padding_between", model, 622, [(1, 3, 11)], mask, [0.02, 0.5, 0.731])

    model = transformer(
        651, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, axes_dims_rope=(4, 6, 6),
    )
    shapes = [(1, 4, 5), (1, 3, 4)]
    # Times that are bf16 numbers: diffusers rounds there.
    inputs = transformer_inputs(model, 652, shapes, padded_at_the_end([8, 5]), [0.75, 0.25])
    write_bf16("qwen_image_transformer", "computed_in_bf16", model, public_config(model), sample, inputs, STORED)


def autoencoder(seed, **config):
    model = randomise(AutoencoderKLQwenImage(**config), seed)
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            if name.endswith("gamma"):
                parameter.copy_(1 + 0.2 * randn(seed + 1 + index, *parameter.shape))
    return model


def latent_statistics(seed, channels):
    """Means and positive deviations of the latents, as the published configuration has them."""
    spread = 1.0 + torch.rand(channels, generator=generator(seed + 1))
    return {
        "latents_mean": [round(x, 4) for x in randn(seed, channels).tolist()],
        "latents_std": [round(x, 4) for x in spread.tolist()],
    }


@torch.no_grad()
def write_autoencoder(variant, model, seed, batch, height, width, dtype=torch.float32):
    scale = 2 ** len(model.config.temperal_downsample)
    pixels = randn(seed, batch, 3, 1, height, width).clamp(-2, 2) / 2
    latents = randn(seed + 1, batch, model.config.z_dim, 1, height // scale, width // scale)
    case = Case("autoencoder_kl_qwen_image", variant)
    case.config(public_config(model))
    case.weights({name: weight.to(dtype) for name, weight in model.state_dict().items()})
    case.inputs(pixels=pixels, latents=latents)
    case.outputs(moments=model.encode(pixels).latent_dist.parameters, decoded=model.decode(latents).sample)
    case.save()


def make_autoencoder():
    # The published levels, of which two would halve time; a picture of few latents whose number is odd.
    model = autoencoder(
        631, base_dim=4, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=1, temperal_downsample=[False, True, True],
        **latent_statistics(632, 4),
    )
    write_autoencoder("published_levels", model, 633, 2, 24, 40)

    # Two levels, halved in time from the first on, two residual blocks as published.
    model = autoencoder(
        641, base_dim=6, z_dim=3, dim_mult=[1, 2, 2], num_res_blocks=2, temperal_downsample=[True, False],
        **latent_statistics(642, 3),
    )
    write_autoencoder("other_levels_bf16", round_to_bf16(model), 643, 1, 20, 28, torch.bfloat16)


SCHEDULE = {
    "base_image_seq_len": 256, "base_shift": 0.5, "invert_sigmas": False, "max_image_seq_len": 8192, "max_shift": 0.9,
    "num_train_timesteps": 1000, "shift": 1.0, "shift_terminal": 0.02, "stochastic_sampling": False,
    "time_shift_type": "exponential", "use_beta_sigmas": False, "use_dynamic_shifting": True,
    "use_exponential_sigmas": False, "use_karras_sigmas": False,
}
"""scheduler_config.json as published."""


def processor(tokenizer, vision):
    """The image processor has the published normalisation, the patches of the small tower and its own pixel limits."""
    limits = {"min_pixels": vision.pop("min_pixels"), "max_pixels": vision.pop("max_pixels")}
    config = {**PUBLISHED_PROCESSOR, "patch_size": vision["patch_size"], **limits}
    config = {name: value for name, value in config.items() if not name.endswith(("_type", "_class"))}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**config), tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**config),
    )


def text_encoder(seed, tokenizer, vision):
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "vision_start", "vision_end")}
    model = nested(seed, vision, vocab_size=len(tokenizer), max_position_embeddings=4096, num_key_value_heads=2)
    model.config.image_token_id = ids["image_pad"]
    model.config.vision_start_token_id = ids["vision_start"]
    model.config.vision_end_token_id = ids["vision_end"]
    model.config.video_token_id = len(tokenizer)
    return model


def pipeline(seed, levels, vision, channels=4):
    tokenizer = words.qwen(model_max_length=2048)
    vision = dict(vision)
    parts = QwenImageEditPlusPipeline(
        processor=processor(tokenizer, vision),
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULE),
        text_encoder=text_encoder(seed, tokenizer, vision),
        tokenizer=tokenizer,
        transformer=transformer(
            seed + 1, in_channels=4 * channels, out_channels=channels, num_layers=2, attention_head_dim=12,
            num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(2, 4, 6),
        ),
        vae=autoencoder(
            seed + 2, base_dim=4, z_dim=channels, dim_mult=levels, num_res_blocks=1,
            temperal_downsample=[False, *[True] * (len(levels) - 2)], **latent_statistics(seed + 3, channels),
        ),
    )
    for part in modules(parts):
        round_to_bf16(part)
    parts.set_progress_bar_config(disable=True)
    return parts


def modules(parts):
    return [parts.vae, parts.text_encoder, parts.transformer]


def save_pipeline(parts, folder):
    """`save_pretrained` with the JSON in one order. Returns the pipeline as it is read again, in f64.

    The one that was saved went through bf16 as a whole, rotary frequencies too, which no file holds.
    """
    for module in modules(parts):
        module.to(torch.bfloat16)
    parts.save_pretrained(folder)
    for path in folder.rglob("*.json"):
        if path.name != "tokenizer.json":
            write_json(path, json.loads(path.read_text()))
    saved = type(parts).from_pretrained(folder, torch_dtype=torch.float32)
    for module in modules(saved):
        module.double()
    saved.set_progress_bar_config(disable=True)
    return saved


def multimodal_positions(model):
    """Gives the text encoder its token types, without which transformers 5 takes image tokens for a line of text.

    The pipeline of diffusers 0.42 does not pass them on (its issue 14194); with transformers 4 they were not needed.
    """
    forward = model.forward

    def typed(input_ids, **more):
        return forward(input_ids=input_ids, mm_token_type_ids=(input_ids == model.config.image_token_id).int(), **more)

    model.forward = typed


@torch.no_grad()
def write_pipeline(variant, parts, seed, picture_sizes, text_positions="multimodal", areas=None, **parameters):
    sizes = {"condition_image_area": areas[0], "source_image_area": areas[1]} if areas else {}
    case = Case("qwen_image_edit_pipeline", variant, tolerance=1e-3, text_positions=text_positions, **sizes, **parameters)
    parts = save_pipeline(parts, case.path("pipeline"))
    if text_positions == "multimodal":
        multimodal_positions(parts.text_encoder)
    reference.CONDITION_IMAGE_SIZE, reference.VAE_IMAGE_SIZE = areas or (384 * 384, 1024 * 1024)
    pictures = [image(seed + index, *size) for index, size in enumerate(picture_sizes)]
    unit = 2 * parts.vae_scale_factor
    height, width = parameters["height"] // unit * unit, parameters["width"] // unit * unit
    latents = randn(seed + 10, 1, height * width // unit**2, parts.transformer.config.in_channels)
    seen = []

    def keep(pipeline, step, timestep, tensors):
        seen.append(tensors["latents"])
        return {}

    result = parts(
        image=[Image.fromarray(picture.numpy()) for picture in pictures], latents=latents.double(), output_type="np",
        callback_on_step_end=keep, **{name: value for name, value in parameters.items() if name != "solver"},
    ).images[0]
    assert result.shape == (height, width, 3)
    case.inputs(latents=latents, **{f"image.{index}": picture for index, picture in enumerate(pictures)})
    case.outputs(latents=seen[-1].float(), image=torch.from_numpy(result).float())
    case.save()


def make_pipeline():
    small = {"patch_size": 4, "window_size": 16, "min_pixels": 256, "max_pixels": 4096}

    # Three sources of different aspects, true CFG with the norm of the conditional prediction.
    parts = pipeline(651, [1, 2, 4, 4], small)
    write_pipeline(
        "three_sources_true_cfg", parts, 652, [(61, 90), (40, 40), (75, 33)], areas=(48 * 48, 96 * 96),
        prompt="Replace the yellow star of picture 1 with the square of picture 2, don't move it!", negative_prompt=" ",
        num_inference_steps=4, true_cfg_scale=4.0, solver="euler", height=70, width=100,
    )

    # The published areas and patches, through a VAE of five levels so that it is few tokens; no guidance.
    published = {"patch_size": 14, "window_size": 112, "min_pixels": 3136, "max_pixels": 12845056}
    parts = pipeline(661, [1, 1, 1, 1, 1], published, channels=2)
    write_pipeline(
        "published_areas", parts, 662, [(150, 200)], prompt="Turn the picture into a pencil drawing.",
        num_inference_steps=2, true_cfg_scale=1.0, solver="euler", height=64, width=128,
    )

    # As this diffusers with this transformers runs: image tokens at the positions of text.
    parts = pipeline(671, [1, 2, 2], small)
    write_pipeline(
        "sequential_positions", parts, 672, [(30, 44), (28, 20)], text_positions="sequential",
        areas=(48 * 48, 64 * 64), prompt="Change the background colour to light grey.", negative_prompt="blurry, dark",
        num_inference_steps=3, true_cfg_scale=2.5, solver="euler", height=32, width=24,
    )
