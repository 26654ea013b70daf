"""scheduler, solver, advantage, nft_loss and lora_linear: the method's own arithmetic, written from its formulas."""

import math

import numpy
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from peft import LoraConfig, get_peft_model

from common import Case, assert_survives_bf16, generator, public_config, randn, write_tensors


def flow_sigmas(scheduler, num_inference_steps, image_seq_len):
    """The pipelines' schedule: linspace(1, 1/N) sent through the scheduler, mu linear in the number of image tokens."""
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = slope * (image_seq_len - config.base_image_seq_len) + config.base_shift
    sigmas = numpy.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    scheduler.set_timesteps(sigmas=sigmas, mu=mu if config.use_dynamic_shifting else None)
    return scheduler.sigmas, scheduler.timesteps


def write_schedule(variant, num_inference_steps, image_seq_len, **config):
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    sigmas, timesteps = flow_sigmas(scheduler, num_inference_steps, image_seq_len)
    case = Case("scheduler", variant, num_inference_steps=num_inference_steps, image_seq_len=image_seq_len)
    case.config(public_config(scheduler))
    case.outputs(timesteps=timesteps, sigmas=sigmas)
    case.save()


def make_schedules():
    flux = {
        "use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    }
    write_schedule("flux_512", 6, 1024, **flux)
    write_schedule("flux_beyond_the_range", 28, 6889, **flux)
    qwen = {
        "use_dynamic_shifting": True, "shift": 1.0, "base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256,
        "max_image_seq_len": 8192, "shift_terminal": 0.02, "time_shift_type": "exponential",
    }
    write_schedule("qwen_terminal", 15, 1517, **qwen)
    write_schedule("static_shift", 9, 100, use_dynamic_shifting=False, shift=3.0)
    write_schedule("linear_shift", 7, 64, **{**flux, "time_shift_type": "linear"})


def log_snr(sigma):
    """lambda = log(alpha / sigma) with alpha = 1 - sigma; infinite at both ends."""
    with numpy.errstate(divide="ignore"):
        return numpy.log(1 - sigma) - numpy.log(sigma)


def step_euler(z, v, x0, sigma, sigma_next, history):
    return z + (sigma_next - sigma) * v


def step_ddim(z, v, x0, sigma, sigma_next, history):
    noise = z + (1 - sigma) * v
    return (1 - sigma_next) * x0 + sigma_next * noise


def step_dpm1(z, v, x0, sigma, sigma_next, history):
    """First order in the data prediction; e^-h is written without logarithms, so that both ends are finite."""
    if sigma_next == 0:
        return x0
    decay = 0.0 if sigma == 1 else math.exp(log_snr(sigma) - log_snr(sigma_next))
    return sigma_next / sigma * z + (1 - sigma_next) * (1 - decay) * x0


def step_dpm2(z, v, x0, sigma, sigma_next, history):
    """Second order multistep, midpoint form; first order without a usable predecessor and at the end."""
    if sigma_next == 0 or not history or history[-1][0] == 1:
        return step_dpm1(z, v, x0, sigma, sigma_next, history)
    sigma_before, x0_before = history[-1]
    h = log_snr(sigma_next) - log_snr(sigma)
    ratio = (log_snr(sigma) - log_snr(sigma_before)) / h
    slope = (x0 - x0_before) / ratio
    return sigma_next / sigma * z + (1 - sigma_next) * (1 - math.exp(-h)) * (x0 + 0.5 * slope)


STEPS = {"euler": step_euler, "ddim": step_ddim, "dpm1": step_dpm1, "dpm2": step_dpm2}


def solve(solver, sigmas, z, velocity):
    """Every latent on the way, [N + 1, ...], starting with `z`; `velocity(z, sigma)`, numpy f64."""
    latents, history = [z], []
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:]):
        v = velocity(z, sigma)
        x0 = z - sigma * v
        z = STEPS[solver](z, v, x0, sigma, sigma_next, history)
        history.append((sigma, x0))
        latents.append(z)
    return numpy.stack(latents)


def write_solver(variant, solver, seed, sigmas):
    z, a, b = randn(seed, 2, 5, 6), randn(seed + 1, 6), randn(seed + 2, 6)
    a64, b64 = a.double().numpy(), b.double().numpy()
    sigmas = sigmas.float()
    latents = solve(
        solver, sigmas.double().numpy(), z.double().numpy(), lambda x, sigma: numpy.tanh(a64 * x) + sigma * b64
    )
    case = Case("solver", variant, solver=solver)
    case.inputs(z=z, sigmas=sigmas, a=a, b=b)
    case.outputs(latents=torch.from_numpy(latents).float())
    case.save()


def make_solvers():
    flux = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    qwen = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02, max_shift=0.9)
    six = flow_sigmas(flux, 6, 1024)[0].clone()
    terminal = flow_sigmas(qwen, 9, 1024)[0].clone()
    write_solver("euler", "euler", 401, six)
    write_solver("ddim", "ddim", 411, six)
    write_solver("dpm1", "dpm1", 421, terminal)
    write_solver("dpm2", "dpm2", 431, six)
    write_solver("dpm2_terminal", "dpm2", 441, terminal)
    # Not from pure noise: the second step has a finite predecessor.
    write_solver("dpm2_partial", "dpm2", 451, torch.tensor([0.93, 0.7, 0.66, 0.2, 0.0]))
    write_solver("dpm2_two_steps", "dpm2", 461, torch.tensor([1.0, 0.5, 0.0]))


def advantages(rewards, std):
    """(R - group mean) / (std + 1e-4), population std over everything or over the group, f64."""
    deviation = rewards.std(axis=1, keepdims=True) if std == "group" else rewards.std()
    return (rewards - rewards.mean(axis=1, keepdims=True)) / (deviation + 1e-4)


def kept(rewards, rule, tau_mean, tau_std):
    mean, std = rewards.mean(axis=1), rewards.std(axis=1)
    if rule == "paper":
        return ~((mean > tau_mean) & (std < tau_std))
    if rule == "strict":
        return (std > tau_std) & (mean < tau_mean)
    return numpy.ones(len(rewards), dtype=bool)


def group_rewards(seed):
    """Groups of every kind: wide, narrow and high, narrow and low, wide and high, and one without any spread."""
    centre = torch.tensor([0.5, 0.95, 0.1, 0.93, 0.6, 0.97, 0.4, 0.5])[:, None]
    spread = torch.tensor([0.3, 0.01, 0.02, 0.2, 0.1, 0.0, 0.15, 0.03])[:, None]
    noise = torch.rand(8, 12, generator=generator(seed)) * 2 - 1
    return (centre + spread * noise).clamp(0, 1)


def write_advantage(variant, seed, std, rule, tau_mean=0.9, tau_std=0.05):
    rewards = group_rewards(seed)
    rewards64 = rewards.double().numpy()
    case = Case("advantage", variant, std=std, filter=rule, tau_mean=tau_mean, tau_std=tau_std)
    case.inputs(rewards=rewards)
    case.outputs(
        advantages=torch.from_numpy(advantages(rewards64, std)).float(),
        keep=torch.from_numpy(kept(rewards64, rule, tau_mean, tau_std)).long(),
    )
    case.save()


def make_advantages():
    write_advantage("global_paper", 501, "global", "paper")
    write_advantage("group_strict", 502, "group", "strict")
    write_advantage("global_none", 503, "global", "none")
    write_advantage("group_paper_other_taus", 504, "group", "paper", 0.45, 0.12)


def shaped(advantages, mode, adv_clip_max):
    """r in 0..1: the probability that a sample counts as a positive one."""
    clipped = advantages.clamp(-adv_clip_max, adv_clip_max)
    if mode == "positive_only":
        clipped = clipped.clamp(min=0)
    elif mode == "negative_only":
        clipped = clipped.clamp(max=0)
    elif mode == "one_only":
        clipped = (clipped > 0).to(clipped.dtype)
    elif mode == "binary":
        clipped = clipped.sign()
    return (clipped / adv_clip_max / 2 + 0.5).clamp(0, 1)


def branch(v, x_t, x0, t):
    """L_pos or L_neg per sample: the squared error of x0_hat over its own mean absolute error, which is a constant."""
    x0_hat = x_t - t[:, None, None] * v
    with torch.no_grad():
        weight = (x0_hat.double() - x0.double()).abs().mean(dim=(1, 2), keepdim=True).clamp(min=1e-5)
    return ((x0_hat - x0) ** 2 / weight).mean(dim=(1, 2))


def nft_loss(x0, noise, t, v_theta, v_old, v_ref, advantages, valid, beta, kl_beta, adv_clip_max, adv_mode):
    """The DiffusionNFT loss over the valid samples: (loss, policy_loss, kl)."""
    time = t[:, None, None]
    x_t = (1 - time) * x0 + time * noise
    r = shaped(advantages, adv_mode, adv_clip_max)
    positive = branch(beta * v_theta + (1 - beta) * v_old, x_t, x0, t)
    negative = branch((1 + beta) * v_old - beta * v_theta, x_t, x0, t)
    count = valid.sum()
    policy = adv_clip_max * ((r * positive / beta + (1 - r) * negative / beta) * valid).sum() / count
    kl = (((v_theta - v_ref) ** 2).mean(dim=(1, 2)) * valid).sum() / count
    return policy + kl_beta * kl, policy, kl


def on_grid(tensor, step):
    """Multiples of `step`, a power of two: sums and differences of such f32 numbers are exact in any order."""
    return (tensor / step).round() * step if step else tensor


def write_nft_loss(variant, seed, advantages, valid, t, spread=0.3, grid=None, **parameters):
    shape = (len(advantages), 6, 5)
    x0, noise = on_grid(randn(seed, *shape), grid), on_grid(randn(seed + 1, *shape), grid)
    v_old = noise - x0 + on_grid(randn(seed + 2, *shape, std=spread), grid)
    v_theta = (v_old + on_grid(randn(seed + 3, *shape, std=spread / 3), grid)).requires_grad_()
    v_ref = v_old + on_grid(randn(seed + 4, *shape, std=spread / 3), grid)
    advantages, valid, t = torch.tensor(advantages), torch.tensor(valid), torch.tensor(t)
    loss, policy, kl = nft_loss(x0, noise, t, v_theta, v_old, v_ref, advantages, valid, **parameters)
    loss.backward()
    case = Case("nft_loss", variant, **parameters)
    case.inputs(
        x0=x0, noise=noise, v_theta=v_theta, v_old=v_old, v_ref=v_ref, t=t, advantages=advantages, valid=valid
    )
    case.outputs(loss=loss.float()[None], policy_loss=policy.float()[None], kl=kl.float()[None])
    case.gradients({"v_theta": v_theta.grad})
    case.save()


def make_nft_losses():
    published = {"beta": 1.0, "kl_beta": 1e-4, "adv_clip_max": 5.0}
    wide = [1.7, -0.4, 0.0, -6.5, 8.0]
    times = [1.0, 0.83, 0.5, 0.21, 0.67]
    all_valid = [1.0] * 5
    write_nft_loss("all", 601, wide, all_valid, times, **published, adv_mode="all")
    write_nft_loss(
        "all_beta_and_invalid", 611, wide, [1.0, 0.0, 1.0, 1.0, 0.0], times, beta=0.1, kl_beta=0.3, adv_clip_max=2.0,
        adv_mode="all",
    )
    write_nft_loss("positive_only", 621, wide, [0.0, 1.0, 1.0, 1.0, 1.0], times, **published, adv_mode="positive_only")
    write_nft_loss("negative_only", 631, wide, all_valid, times, **published, adv_mode="negative_only")
    write_nft_loss("one_only", 641, wide, all_valid, times, **published, adv_mode="one_only")
    write_nft_loss("binary", 651, wide, [1.0, 1.0, 0.0, 1.0, 1.0], times, **published, adv_mode="binary")
    # Predictions so good that the weight meets its lower bound; on a grid, or cancellation would leave no digits.
    write_nft_loss(
        "weight_clamped", 661, wide, all_valid, [0.5, 0.25, 0.5, 0.25, 0.5], spread=1.2e-5, grid=2.0**-18,
        **published, adv_mode="all",
    )


def write_lora_linear(variant, seed, batch, tokens, inputs, outputs, rank, alpha):
    base = randn(seed, outputs, inputs, std=inputs**-0.5)
    lora_a = randn(seed + 1, rank, inputs, std=inputs**-0.5).requires_grad_()
    lora_b = randn(seed + 2, outputs, rank, std=rank**-0.5).requires_grad_()
    x, dy = randn(seed + 3, batch, tokens, inputs).requires_grad_(), randn(seed + 4, batch, tokens, outputs)
    y = x @ base.T + alpha / rank * (x @ lora_a.T) @ lora_b.T
    y.backward(dy)
    case = Case("lora_linear", variant, rank=rank, alpha=alpha)
    write_tensors(case.path("weights.safetensors"), {"base": base, "lora_A": lora_a, "lora_B": lora_b})
    case.inputs(x=x, dy=dy)
    case.outputs(y=y)
    case.gradients({"lora_A": lora_a.grad, "lora_B": lora_b.grad, "x": x.grad})
    case.save()


class Projection(torch.nn.Module):
    """What peft adapts."""

    def __init__(self, weight):
        super().__init__()
        self.to_q = torch.nn.Linear(*weight.shape[::-1], bias=False)
        self.to_q.weight.data = weight

    def forward(self, x):
        return self.to_q(x)


def lora_linear(base, lora_a, lora_b, alpha, x, dy):
    """Output and gradients of peft's layer, whose factors stay f32 beside a base of any type."""
    model = get_peft_model(Projection(base), LoraConfig(r=len(lora_a), lora_alpha=alpha, target_modules=["to_q"]))
    layer = model.base_model.model.to_q
    factors = {"lora_A": layer.lora_A["default"].weight, "lora_B": layer.lora_B["default"].weight}
    factors["lora_A"].data, factors["lora_B"].data = lora_a, lora_b
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(dy)
    return {"y": y}, {"x": x.grad, **{name: factor.grad for name, factor in factors.items()}}


def write_lora_linear_bf16(variant, seed, batch, tokens, inputs, outputs, rank, alpha):
    base = randn(seed, outputs, inputs, std=inputs**-0.5).bfloat16()
    lora_a, lora_b = randn(seed + 1, rank, inputs, std=inputs**-0.5), randn(seed + 2, outputs, rank, std=rank**-0.5)
    x, dy = randn(seed + 3, batch, tokens, inputs).bfloat16(), randn(seed + 4, batch, tokens, outputs).bfloat16()
    y, gradients = lora_linear(base, lora_a, lora_b, alpha, x, dy)
    exact = lora_linear(base.float(), lora_a, lora_b, alpha, x.float(), dy.float())
    assert_survives_bf16({**y, **gradients}, {**exact[0], **exact[1]})
    case = Case("lora_linear", variant, dtype="bf16", min_cosine=0.999, rank=rank, alpha=alpha)
    write_tensors(case.path("weights.safetensors"), {"base": base, "lora_A": lora_a, "lora_B": lora_b})
    case.inputs(x=x, dy=dy)
    case.outputs(y)
    case.gradients(gradients)
    case.save()


def make_lora_linears():
    write_lora_linear("rank_four", 701, 2, 7, 24, 40, 4, 8.0)
    write_lora_linear("rank_one_odd", 711, 3, 5, 17, 11, 1, 0.5)
    write_lora_linear_bf16("computed_in_bf16", 721, 2, 19, 48, 40, 4, 8.0)
