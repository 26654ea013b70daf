"""flux_transformer: diffusers' FluxTransformer2DModel, as Kontext uses it."""

import torch
from diffusers import FluxTransformer2DModel

from common import Case, generator, public_config, randn, randomise, round_to_bf16, write_bf16


def ids(first, height, width, top=0, left=0):
    """Rope ids [height * width, 3] of a token grid: (first, row, column)."""
    grid = torch.zeros(height, width, 3)
    grid[..., 0] = first
    grid[..., 1] += top + torch.arange(height)[:, None]
    grid[..., 2] += left + torch.arange(width)[None, :]
    return grid.reshape(-1, 3)


def transformer(seed, **config):
    return randomise(FluxTransformer2DModel(**config), seed)


def inputs(model, seed, batch, text_tokens, img_ids, timestep):
    config = model.config
    tensors = {
        "hidden_states": randn(seed, batch, len(img_ids), config.in_channels),
        "encoder_hidden_states": randn(seed + 1, batch, text_tokens, config.joint_attention_dim),
        "pooled_projections": randn(seed + 2, batch, config.pooled_projection_dim),
        "timestep": torch.tensor(timestep),
        "img_ids": img_ids,
        "txt_ids": torch.zeros(text_tokens, 3),
    }
    if config.guidance_embeds:
        tensors["guidance"] = 1.0 + 3.0 * torch.rand(batch, generator=generator(seed + 3))
    return tensors


@torch.no_grad()
def write(variant, model, tensors, dtype=torch.float32):
    case = Case("flux_transformer", variant)
    case.config(public_config(model))
    case.weights({name: weight.to(dtype) for name, weight in model.state_dict().items()})
    case.inputs(**tensors)
    case.outputs(sample=model(**tensors).sample)
    case.save()


STORED = ["hidden_states", "encoder_hidden_states", "pooled_projections"]
"""Inputs that pipelines keep in the transformer's type; times, scales and positions are f32."""


def make():
    model = transformer(
        11, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=20, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )
    write("guidance", model, inputs(model, 12, 2, 5, ids(0, 4, 6), [0.9, 0.35]))

    model = transformer(
        21, in_channels=12, num_layers=2, num_single_layers=1, attention_head_dim=10, num_attention_heads=3,
        joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=False, axes_dims_rope=(2, 4, 4),
    )
    tokens = torch.cat([ids(0, 3, 5), ids(1, 7, 3)])
    write("source_tokens_bf16", round_to_bf16(model), inputs(model, 22, 1, 7, tokens, [1.0]), torch.bfloat16)

    model = transformer(
        31, in_channels=20, out_channels=12, num_layers=1, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=3, joint_attention_dim=17, pooled_projection_dim=9, guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    tokens = torch.cat([ids(0, 5, 7, top=3, left=11), ids(1, 2, 3)])
    write("odd_sizes", model, inputs(model, 32, 3, 1, tokens, [0.02, 0.5, 0.731]))

    model = transformer(
        41, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=20, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )
    tokens = torch.cat([ids(0, 4, 5), ids(1, 3, 4)])
    # Times and scales whose thousandfold is a bf16 number: diffusers rounds there, to four of a thousand.
    tensors = {**inputs(model, 42, 2, 6, tokens, [0.5, 0.25]), "guidance": torch.tensor([2.0, 4.0])}
    write_bf16(
        "flux_transformer", "computed_in_bf16", model, public_config(model),
        lambda model, **tensors: {"sample": model(**tensors).sample}, tensors, STORED,
    )
