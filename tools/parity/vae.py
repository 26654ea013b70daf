"""autoencoder_kl: diffusers' AutoencoderKL, FLUX style (no quant convolutions) and the older one."""

import torch
from diffusers import AutoencoderKL

from common import Case, public_config, randn, randomise, round_to_bf16, write_bf16


def autoencoder(seed, block_out_channels, **config):
    levels = len(block_out_channels)
    model = AutoencoderKL(
        block_out_channels=block_out_channels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        **config,
    )
    return randomise(model, seed)


def inputs(model, seed, batch, height, width):
    factor = 2 ** (len(model.config.block_out_channels) - 1)
    return {
        "pixels": randn(seed, batch, 3, height, width).clamp(-2, 2) / 2,
        "latents": randn(seed + 1, batch, model.config.latent_channels, height // factor, width // factor),
    }


def outputs(model, pixels, latents):
    return {"moments": model.encode(pixels).latent_dist.parameters, "decoded": model.decode(latents).sample}


@torch.no_grad()
def write(variant, model, seed, batch, height, width, dtype=torch.float32):
    tensors = inputs(model, seed, batch, height, width)
    case = Case("autoencoder_kl", variant)
    case.config(public_config(model))
    case.weights({name: weight.to(dtype) for name, weight in model.state_dict().items()})
    case.inputs(**tensors)
    case.outputs(outputs(model, **tensors))
    case.save()


def make():
    flux = {"use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    model = autoencoder(41, (8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4, **flux)
    write("flux_two_levels", model, 42, 2, 12, 20)

    model = autoencoder(51, (4, 8, 8, 12), layers_per_block=2, latent_channels=3, norm_num_groups=2, **flux)
    write("flux_four_levels_bf16", round_to_bf16(model), 52, 1, 40, 24, torch.bfloat16)

    model = autoencoder(
        61, (6, 12, 12), layers_per_block=1, latent_channels=2, norm_num_groups=3, mid_block_add_attention=False
    )
    write("quant_convs_no_attention", model, 62, 1, 20, 28)

    model = autoencoder(71, (8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4, **flux)
    tensors = inputs(model, 72, 1, 20, 28)
    write_bf16("autoencoder_kl", "computed_in_bf16", model, public_config(model), outputs, tensors, list(tensors))
