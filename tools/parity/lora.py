"""peft_folder and nft_step: peft's LoRA over FluxTransformer2DModel, and one whole optimizer step of the method."""

import copy
import json

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from common import (
    Case, assert_survives_bf16, generator, public_config, randn, round_to_bf16, to_bf16, write_json, write_tensors,
)
from flux import ids, inputs, transformer
from method import nft_loss

ATTENTION = [
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
]
"""The projections that training adapts; the first three also match those of the single-stream blocks."""


def adapted(model, seed, rank, alpha, targets=ATTENTION, **options):
    """`model` under an adapter whose both factors are random, so that its effect is of the base's order."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, **options)
    model = get_peft_model(model, config).eval()
    set_peft_model_state_dict(model, random_adapter(model, seed))
    return model


def random_adapter(model, seed):
    state = generator(seed)
    factors = {}
    for name, weight in sorted(get_peft_model_state_dict(model).items()):
        std = weight.shape[1] ** -0.5 * (1.0 if "lora_A" in name else 0.5)
        factors[name] = torch.randn(weight.shape, generator=state) * std
    return factors


def write_adapter(folder, model, dtype):
    """The folder that peft's `save_pretrained` writes, without its model card and with sets in one order."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"].sort()
    write_json(folder / "adapter_config.json", config)
    factors = get_peft_model_state_dict(model)
    write_tensors(
        folder / "adapter_model.safetensors", {name: factor.to(dtype) for name, factor in factors.items()}
    )


@torch.no_grad()
def write_peft(variant, base, tensors, rank, alpha, seed, dtype=torch.float32, **options):
    case = Case("peft_folder", variant)
    case.config(public_config(base))
    case.weights(base.state_dict())
    without = base(**tensors).sample
    model = adapted(base, seed, rank, alpha, **options)
    if dtype == torch.bfloat16:
        round_to_bf16_factors(model)
    write_adapter(case.path("adapter"), model, dtype)
    sample = model(**tensors).sample
    assert (sample - without).abs().max() > 0.1, "an adapter that does nothing proves nothing"
    case.inputs(**tensors)
    case.outputs(sample=sample)
    case.save()


def round_to_bf16_factors(model):
    factors = get_peft_model_state_dict(model)
    set_peft_model_state_dict(model, {name: factor.bfloat16().float() for name, factor in factors.items()})


def make_peft():
    base = transformer(
        801, in_channels=12, num_layers=1, num_single_layers=1, attention_head_dim=12, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=10, guidance_embeds=True, axes_dims_rope=(2, 4, 6),
    )
    write_peft("attention", base, inputs(base, 802, 2, 3, ids(0, 3, 4), [0.7, 0.2]), 4, 8, 803)

    base = transformer(
        811, in_channels=8, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=10, guidance_embeds=False, axes_dims_rope=(2, 2, 4),
    )
    write_peft(
        "two_targets_rslora_bf16", base, inputs(base, 812, 1, 4, ids(0, 4, 4), [0.9]), 3, 5, 813,
        torch.bfloat16, targets=["to_k", "to_out.0"], use_rslora=True,
    )


class Step:
    """One iteration of training on a batch of (sample, timestep) pairs: v_old, v_ref, v_theta, loss, AdamW, old, EMA."""

    def __init__(self, base, seed, rank, alpha):
        self.dtype = base.dtype
        self.model = adapted(base, seed, rank, alpha)
        self.theta = {name: factor.clone() for name, factor in get_peft_model_state_dict(self.model).items()}
        self.old = {
            name: factor + randn(seed + 1 + index, *factor.shape, std=0.1 * factor.std().item())
            for index, (name, factor) in enumerate(sorted(self.theta.items()))
        }

    def velocity(self, batch):
        """v of the noised tokens; the source image's tokens behind them are only attended to.

        The transformer computes in its own type, all else in f32.
        """
        t, x0 = batch["t"], batch["x0"]
        x_t = (1 - t[:, None, None]) * x0 + t[:, None, None] * batch["noise"]
        stored = {name: batch[name].to(self.dtype) for name in ["encoder_hidden_states", "pooled_projections"]}
        sample = self.model(
            hidden_states=torch.cat([x_t, batch["image_latents"]], dim=1).to(self.dtype), timestep=t, **stored,
            **{name: batch[name] for name in ["guidance", "img_ids", "txt_ids"] if name in batch},
        ).sample
        return sample[:, : x0.shape[1]].float()

    def run(self, batch, parameters):
        with torch.no_grad():
            set_peft_model_state_dict(self.model, self.old)
            v_old = self.velocity(batch)
            with self.model.disable_adapter():
                v_ref = self.velocity(batch)
        set_peft_model_state_dict(self.model, self.theta)
        names = ["x0", "noise", "t"]
        loss, _, _ = nft_loss(
            *(batch[name] for name in names), self.velocity(batch), v_old, v_ref, batch["advantages"], batch["valid"],
            *(parameters[name] for name in ["beta", "kl_beta", "adv_clip_max", "adv_mode"]),
        )
        loss.backward()
        return loss

    def factors(self):
        """The adapter's parameters under peft's file names."""
        return {name.replace(".default.", "."): p for name, p in self.model.named_parameters() if "lora_" in name}

    def update(self, parameters):
        factors = self.factors()
        optimizer = torch.optim.AdamW(
            factors.values(), lr=parameters["learning_rate"], eps=parameters["adam_epsilon"],
            betas=(parameters["adam_beta1"], parameters["adam_beta2"]), weight_decay=parameters["weight_decay"],
        )
        norm = torch.nn.utils.clip_grad_norm_(factors.values(), parameters["max_grad_norm"])
        optimizer.step()
        return norm


def mix(decay, before, after):
    return {name: decay * before[name] + (1 - decay) * after[name].detach() for name in before}


def batch_of(base, seed, advantages, valid, t, grid, source_grid, text_tokens):
    img_ids = torch.cat([ids(0, *grid), ids(1, *source_grid)])
    batch = inputs(base, seed, len(t), text_tokens, img_ids, t)
    hidden = batch.pop("hidden_states")
    del batch["timestep"]
    tokens = grid[0] * grid[1]
    batch["image_latents"] = hidden[:, tokens:]
    batch["x0"] = hidden[:, :tokens]
    batch["noise"] = randn(seed + 10, *batch["x0"].shape)
    return {**batch, "t": torch.tensor(t), "advantages": torch.tensor(advantages), "valid": torch.tensor(valid)}


def step_outputs(base, seed, batch, parameters):
    """(outputs, gradients, the step itself)"""
    step = Step(base, seed, parameters["rank"], parameters["alpha"])
    loss = step.run(batch, parameters)
    gradients = {name: factor.grad.clone() for name, factor in step.factors().items()}
    step.update(parameters)
    theta = step.factors()
    outputs = {"loss": loss.float()[None]}
    outputs |= {f"theta.{name}": factor.detach() for name, factor in theta.items()}
    outputs |= {f"old.{name}": factor for name, factor in mix(parameters["eta"], step.old, theta).items()}
    outputs |= {f"ema.{name}": factor for name, factor in mix(parameters["ema_decay"], step.theta, theta).items()}
    return outputs, gradients, step


def write_step(variant, base, seed, batch, parameters, dtype=torch.float32):
    case = Case("nft_step", variant, **parameters)
    case.config(public_config(base))
    case.weights({name: weight.to(dtype) for name, weight in base.state_dict().items()})
    fill_step(case, batch, *step_outputs(base, seed, batch, parameters))


def write_step_bf16(variant, base, seed, batch, parameters):
    """The base in bf16, factors, loss and optimizer in f32."""
    exact_outputs, exact_gradients, _ = step_outputs(round_to_bf16(copy.deepcopy(base)), seed, batch, parameters)
    case = Case("nft_step", variant, dtype="bf16", min_cosine=0.999, **parameters)
    case.config(public_config(base))
    base = to_bf16(base)
    case.weights(base.state_dict())
    outputs, gradients, step = step_outputs(base, seed, batch, parameters)
    assert_survives_bf16(outputs, exact_outputs)
    assert_survives_bf16(gradients, exact_gradients)
    for name, factor in step.factors().items():
        cosine = torch.cosine_similarity(factor.flatten(), step.theta[name].flatten(), dim=0)
        assert cosine < 0.997, f"{name}: a step that changes so little ({cosine}) would pass if it were left out"
    fill_step(case, batch, outputs, gradients, step)


def fill_step(case, batch, outputs, gradients, step):
    write_tensors(case.path("lora_theta.safetensors"), step.theta)
    write_tensors(case.path("lora_old.safetensors"), step.old)
    case.inputs(**batch)
    case.outputs(outputs)
    case.gradients(gradients)
    case.save()


def make_steps():
    # The published numbers, at the first step: eta 0.001 and EMA decay 2/11.
    base = transformer(
        853, in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=10, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )
    parameters = {
        "beta": 1.0, "kl_beta": 1e-4, "adv_clip_max": 5.0, "adv_mode": "all", "rank": 4, "alpha": 8.0,
        "learning_rate": 3e-4, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "weight_decay": 1e-4,
        "max_grad_norm": 1.0, "eta": 0.001, "ema_decay": 2 / 11,
    }
    batch = batch_of(base, 854, [1.3, -0.7, 6.0, -2.2], [1.0] * 4, [1.0, 0.83, 0.5, 0.25], (3, 4), (3, 4), 5)
    write_step("published", base, 855, batch, parameters)

    # Numbers with which every term shows in theta: a large epsilon, a clipped norm, decay, invalid samples, strong KL.
    base = round_to_bf16(transformer(
        831, in_channels=12, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=3,
        joint_attention_dim=16, pooled_projection_dim=8, guidance_embeds=False, axes_dims_rope=(2, 2, 4),
    ))
    parameters = {
        "beta": 0.5, "kl_beta": 0.2, "adv_clip_max": 2.0, "adv_mode": "binary", "rank": 3, "alpha": 2.0,
        "learning_rate": 0.02, "adam_beta1": 0.8, "adam_beta2": 0.99, "adam_epsilon": 1e-2, "weight_decay": 0.1,
        "max_grad_norm": 0.05, "eta": 0.5, "ema_decay": 0.9,
    }
    batch = batch_of(
        base, 832, [1.3, -0.7, 0.4, -2.2, 0.0], [1.0, 1.0, 0.0, 1.0, 1.0], [0.9, 0.6, 0.5, 0.3, 0.75], (2, 5), (4, 2), 3
    )
    write_step("every_term_bf16", base, 833, batch, parameters, torch.bfloat16)

    # A step as long as theta: its direction is the gradient's where the epsilon is large.
    base = transformer(
        871, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )
    parameters = {
        "beta": 0.5, "kl_beta": 0.2, "adv_clip_max": 2.0, "adv_mode": "all", "rank": 4, "alpha": 8.0,
        "learning_rate": 12.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 0.1, "weight_decay": 0.01,
        "max_grad_norm": 0.3, "eta": 0.5, "ema_decay": 0.5,
    }
    batch = batch_of(base, 872, [1.3, -0.7, -2.2], [1.0] * 3, [0.5, 0.25, 0.125], (6, 6), (5, 4), 6)
    batch["guidance"] = torch.tensor([2.0, 4.0, 1.0])
    write_step_bf16("computed_in_bf16", base, 873, batch, parameters)
