"""kontext_pipeline: diffusers' FluxKontextPipeline with tiny components and real, tiny tokenizers."""

import json

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

import words
from common import Case, assert_survives_bf16, image, randn, randomise, round_to_bf16, to_bf16, write_json
from flux import transformer
from method import flow_sigmas, solve
from text import t5
from vae import autoencoder


def clip_model(seed, tokenizer, length, hidden_size):
    """With the published file's eos_token_id of 2, which means the highest id, here as there the end token's."""
    return randomise(CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=2 * hidden_size, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=length, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )), seed)


FLUX_SCHEDULE = {"use_dynamic_shifting": True, "shift": 3.0}


def pipeline(
    seed, block_out_channels, clip_length, guidance_embeds, latent_channels=4, norm_num_groups=4, schedule=FLUX_SCHEDULE
):
    clip = words.clip(model_max_length=clip_length)
    pieces = words.t5(model_max_length=512)
    parts = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**schedule),
        vae=autoencoder(
            seed, block_out_channels, layers_per_block=1, latent_channels=latent_channels,
            norm_num_groups=norm_num_groups, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611,
            shift_factor=0.1159,
        ),
        text_encoder=clip_model(seed + 1, clip, clip_length, 20),
        tokenizer=clip,
        text_encoder_2=t5(
            seed + 2, vocab_size=len(pieces) + 1, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3
        ),
        tokenizer_2=pieces,
        transformer=transformer(
            seed + 3, in_channels=4 * latent_channels, num_layers=1, num_single_layers=1, attention_head_dim=12,
            num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=20,
            guidance_embeds=guidance_embeds, axes_dims_rope=(2, 4, 6),
        ),
    )
    for module in modules(parts):
        round_to_bf16(module)
    parts.set_progress_bar_config(disable=True)
    return parts


def modules(parts):
    return [parts.vae, parts.text_encoder, parts.text_encoder_2, parts.transformer]


def save_pipeline(parts, folder, dtype):
    """`save_pretrained` with the JSON in one order.

    The pipeline then goes on in f64: torch's f32 group norm is wrong in the third digit for pictures of a megapixel.
    """
    for module in modules(parts):
        module.to(dtype)
    parts.save_pretrained(folder)
    for module in modules(parts):
        module.double()
    for path in folder.rglob("*.json"):
        if path.name != "tokenizer.json":
            write_json(path, json.loads(path.read_text()))


def published_clip_folder(folder):
    """vocab.json and merges.txt in tokenizer.json's place, as the published checkpoints have CLIP's tokenizer."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    write_json(folder / "vocab.json", model["vocab"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    specials = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    specials = {**specials, "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    write_json(folder / "special_tokens_map.json", specials)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    length = config["model_max_length"]
    write_json(folder / "tokenizer_config.json", {
        **specials, "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": length,
        "tokenizer_class": "CLIPTokenizer",
    })


def output_size(parts, parameters):
    """The height and width that the pipeline makes of the ones asked for: the aspect kept, the area max_area."""
    unit = 2 * parts.vae_scale_factor
    aspect = parameters["width"] / parameters["height"]
    area = parameters["max_area"]
    return round((area / aspect) ** 0.5) // unit * unit, round((area * aspect) ** 0.5) // unit * unit


def run_diffusers(parts, picture, latents, parameters):
    """(packed final latents, image) by the pipeline itself, which has the euler step alone."""
    seen = []

    def keep(pipeline, step, timestep, tensors):
        seen.append(tensors["latents"])
        return {}

    result = parts(
        image=picture, latents=latents, output_type="np", callback_on_step_end=keep,
        prompt=parameters["prompt"], num_inference_steps=parameters["num_inference_steps"],
        guidance_scale=parameters["guidance_scale"], height=parameters["height"], width=parameters["width"],
        max_area=parameters["max_area"], max_sequence_length=parameters["max_sequence_length"],
        _auto_resize=parameters["auto_resize"],
    )
    return seen[-1], torch.from_numpy(result.images[0])


def run_solver(parts, picture, latents, parameters):
    """The same with any solver: the pipeline's parts, called in its order; without auto_resize."""
    height, width = output_size(parts, parameters)
    embeds, pooled, txt_ids = parts.encode_prompt(
        prompt=parameters["prompt"], max_sequence_length=parameters["max_sequence_length"]
    )
    unit = 2 * parts.vae_scale_factor
    size = (picture.height // unit * unit, picture.width // unit * unit)
    pixels = parts.image_processor.preprocess(parts.image_processor.resize(picture, *size), *size)
    channels = parts.transformer.config.in_channels // 4
    latents, image_latents, img_ids, image_ids = parts.prepare_latents(
        pixels, 1, channels, height, width, embeds.dtype, embeds.device, latents=latents
    )
    guidance = torch.full([1], parameters["guidance_scale"]) if parts.transformer.config.guidance_embeds else None

    def velocity(x, sigma):
        sample = parts.transformer(
            hidden_states=torch.cat([torch.from_numpy(x), image_latents], dim=1),
            timestep=torch.tensor([sigma]), guidance=guidance, pooled_projections=pooled,
            encoder_hidden_states=embeds, txt_ids=txt_ids, img_ids=torch.cat([img_ids, image_ids]),
        ).sample
        return sample[:, : latents.shape[1]].numpy()

    sigmas, _ = flow_sigmas(parts.scheduler, parameters["num_inference_steps"], latents.shape[1])
    path = solve(parameters["solver"], sigmas.double().numpy(), latents.numpy(), velocity)
    final = torch.from_numpy(path[-1])
    unpacked = parts._unpack_latents(final, height, width, parts.vae_scale_factor)
    unpacked = unpacked / parts.vae.config.scaling_factor + parts.vae.config.shift_factor
    decoded = parts.image_processor.postprocess(parts.vae.decode(unpacked).sample, output_type="np")
    return final, torch.from_numpy(decoded[0])


def inputs(parts, seed, picture_size, parameters):
    """(picture [H, W, 3], packed initial noise)"""
    height, width = output_size(parts, parameters)
    tokens = height * width // (2 * parts.vae_scale_factor) ** 2
    return image(seed, *picture_size), randn(seed + 1, 1, tokens, parts.transformer.config.in_channels)


@torch.no_grad()
def write(variant, parts, seed, picture_size, run=run_diffusers, dtype=torch.bfloat16, published=False, **parameters):
    case = Case("kontext_pipeline", variant, **parameters)
    save_pipeline(parts, case.path("pipeline"), dtype)
    if published:
        published_clip_folder(case.path("pipeline") / "tokenizer")
    pixels, latents = inputs(parts, seed, picture_size, parameters)
    final, result = run(parts, Image.fromarray(pixels.numpy()), latents.double(), parameters)
    assert result.shape == (*output_size(parts, parameters), 3)
    case.inputs(image=pixels, latents=latents)
    case.outputs(latents=final.float(), image=result.float())
    case.save()


@torch.no_grad()
def write_bf16(variant, parts, seed, picture_size, **parameters):
    case = Case("kontext_pipeline", variant, dtype="bf16", min_cosine=0.999, **parameters)
    save_pipeline(parts, case.path("pipeline"), torch.bfloat16)
    pixels, latents = inputs(parts, seed, picture_size, parameters)
    picture, latents = Image.fromarray(pixels.numpy()), latents.bfloat16()
    names = ["latents", "image"]
    exact = dict(zip(names, run_diffusers(parts, picture, latents.double(), parameters)))
    for module in modules(parts):
        to_bf16(module)
    outputs = dict(zip(names, run_diffusers(parts, picture, latents, parameters)))
    assert_survives_bf16(outputs, exact)
    case.inputs(image=pixels, latents=latents)
    case.outputs(outputs)
    case.save()


def make():
    # Four levels of the VAE as published, aspect kept under max_area, a picture whose sides are no multiples of 16.
    parts = pipeline(901, (8, 8, 8, 12), 77, guidance_embeds=True)
    write(
        "euler", parts, 902, (61, 90), prompt="Replace the yellow star with a purple cross, don't move it!",
        num_inference_steps=4, guidance_scale=2.5, solver="euler", height=70, width=100, max_area=64 * 112,
        auto_resize=False, max_sequence_length=40,
    )

    # Training's solver; both texts longer than their limits, CLIP's tokenizer as published, no guidance embedding.
    parts = pipeline(911, (8, 12), 16, guidance_embeds=False)
    write(
        "dpm2_truncated_prompt", parts, 912, (27, 38), run=run_solver, published=True,
        prompt="Change the background colour to light grey; keep the 13 red dots, and don't move anything else at all.",
        num_inference_steps=6, guidance_scale=1.0, solver="dpm2", height=24, width=16, max_area=24 * 16,
        auto_resize=False, max_sequence_length=12,
    )

    # A preferred resolution, chosen by the aspect of the sides cut to multiples of 64 (128 x 192, not 150 x 200), through
    # a VAE of six levels so that it is few tokens.
    parts = pipeline(921, (4, 4, 4, 4, 8, 8), 77, guidance_embeds=True, latent_channels=2, norm_num_groups=2)
    write(
        "auto_resize", parts, 922, (150, 200), prompt="Turn the picture into a pencil drawing.",
        num_inference_steps=2, guidance_scale=3.5, solver="euler", height=64, width=128, max_area=64 * 128,
        auto_resize=True, max_sequence_length=16,
    )

    # As training computes it. Times of 1000 and 500: diffusers rounds them to bf16, which costs others up to 2.
    schedule = {"use_dynamic_shifting": False, "shift": 1.0}
    parts = pipeline(931, (8, 12), 77, guidance_embeds=True, schedule=schedule)
    write_bf16(
        "computed_in_bf16", parts, 932, (44, 60), prompt="Replace the yellow star with a purple cross.",
        num_inference_steps=2, guidance_scale=2.0, solver="euler", height=32, width=48, max_area=32 * 48,
        auto_resize=False, max_sequence_length=20,
    )
