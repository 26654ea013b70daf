"""What torch does with a transformer of FLUX.1-Kontext's size on this card: the yardstick beside retouch's own times.

    python3 torch_peer.py [--batch 1] [--pixels 512] [--compile] [--small]

Blocks as diffusers writes them, random bf16 weights, LoRA of rank 32 on the projections of attention, SDPA. Printed
as JSON: rates of the card (a product, a copy, attention), seconds and GiB of a frozen forward and of a training step
(forward and backward, blocks checkpointed), and what a pair of NFT comes to: two frozen forwards and a training step.
--compile does forward and training step again with torch.compile by block. --small is for machines without a GPU.
"""

import argparse
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

RANK = 32
TEXT_TOKENS = 128


class LoraLinear(nn.Module):
    """A frozen projection and its low-rank update, the latter in f32 as in training."""

    def __init__(self, inner, outer):
        super().__init__()
        self.base = nn.Linear(inner, outer).requires_grad_(False).bfloat16()
        self.a = nn.Parameter(torch.randn(RANK, inner) / math.sqrt(inner))
        self.b = nn.Parameter(torch.randn(outer, RANK) / math.sqrt(RANK) * 1e-2)

    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype))


def frozen(inner, outer):
    return nn.Linear(inner, outer).requires_grad_(False).bfloat16()


def frozen_norm(width):
    return nn.RMSNorm(width, eps=1e-6).requires_grad_(False).bfloat16()


def rotate(x, cos, sin):
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Projections of one stream: queries and keys normalized by head, in heads."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (LoraLinear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = (frozen_norm(width // heads) for _ in range(2))

    def forward(self, x):
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.norm_q(q), self.norm_k(k), v


def attend(q, k, v, rope):
    mixed = F.scaled_dot_product_attention(rotate(q, *rope), rotate(k, *rope), v)
    return mixed.transpose(1, 2).flatten(2)


def modulate(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class DoubleStream(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.modulation = nn.ModuleList(frozen(width, 6 * width) for _ in range(2))
        self.attention = nn.ModuleList(Attention(width, heads) for _ in range(2))
        self.out = nn.ModuleList(LoraLinear(width, width) for _ in range(2))
        self.up = nn.ModuleList(frozen(width, 4 * width) for _ in range(2))
        self.down = nn.ModuleList(frozen(4 * width, width) for _ in range(2))

    def forward(self, text, image, time, rope):
        streams = [text, image]
        parts = [layer(F.silu(time)).unsqueeze(1).chunk(6, -1) for layer in self.modulation]
        heads = [layer(modulate(x, part[0], part[1])) for layer, x, part in zip(self.attention, streams, parts)]
        q, k, v = (torch.cat(pair, 2) for pair in zip(*heads))
        mixed = attend(q, k, v, rope).split([text.shape[1], image.shape[1]], 1)
        done = []
        for i, (x, part) in enumerate(zip(streams, parts)):
            x = x + part[2] * self.out[i](mixed[i])
            x = x + part[5] * self.down[i](F.gelu(self.up[i](modulate(x, part[3], part[4])), approximate="tanh"))
            done.append(x)
        return done


class SingleStream(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.modulation = frozen(width, 3 * width)
        self.attention = Attention(width, heads)
        self.up, self.down = frozen(width, 4 * width), frozen(5 * width, width)

    def forward(self, x, time, rope):
        shift, scale, gate = self.modulation(F.silu(time)).unsqueeze(1).chunk(3, -1)
        normed = modulate(x, shift, scale)
        mixed = attend(*self.attention(normed), rope)
        hidden = F.gelu(self.up(normed), approximate="tanh")
        return x + gate * self.down(torch.cat((mixed, hidden), -1))


class Transformer(nn.Module):
    def __init__(self, width, heads, doubles, singles, text_width, latent_width):
        super().__init__()
        self.text_in, self.image_in = frozen(text_width, width), frozen(latent_width, width)
        self.doubles = nn.ModuleList(DoubleStream(width, heads) for _ in range(doubles))
        self.singles = nn.ModuleList(SingleStream(width, heads) for _ in range(singles))
        self.out = frozen(width, latent_width)

    def forward(self, image, text, time, rope):
        def run(block, *inputs):
            return checkpoint(block, *inputs, use_reentrant=False) if torch.is_grad_enabled() else block(*inputs)

        text, image = self.text_in(text), self.image_in(image)
        tokens = image.shape[1]
        for block in self.doubles:
            text, image = run(block, text, image, time, rope)
        x = torch.cat((text, image), 1)
        for block in self.singles:
            x = run(block, x, time, rope)
        # The first half of the image tokens is the picture that is made; the rest is the source.
        return self.out(x[:, -tokens : -tokens // 2])


class Clock:
    def __init__(self, device):
        self.cuda = device == "cuda"

    def wait(self):
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, work, times, warm):
        for _ in range(warm):
            work()
        self.wait()
        taken = []
        for _ in range(times):
            begin = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - begin)
        return statistics.median(taken)

    def peak_gib(self):
        """Since the last call."""
        if not self.cuda:
            return None
        peak = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return round(peak, 2)


def card_rates(clock, device, batch, heads, tokens, side):
    def make(*shape):
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    a, b = make(side, side), make(side, side)
    product = clock.seconds(lambda: a @ b, 10, 3)
    copy = clock.seconds(lambda: a.clone(), 10, 3)
    q, k, v = (make(batch, heads, tokens, 128) for _ in range(3))
    attention = clock.seconds(lambda: F.scaled_dot_product_attention(q, k, v), 10, 3)
    return {
        f"product {side}^3, TFLOP/s": round(2 * side**3 / product / 1e12, 1),
        "copy, TB/s read and written": round(2 * 2 * side**2 / copy / 1e12, 3),
        "attention, TFLOP/s": round(4 * batch * heads * tokens**2 * 128 / attention / 1e12, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clock = Clock(device)
    torch.manual_seed(0)
    width, heads, doubles, singles, side = (256, 2, 1, 1, 512) if arguments.small else (3072, 24, 19, 38, 8192)
    image_tokens = 2 * (arguments.pixels // 16) ** 2
    tokens = TEXT_TOKENS + image_tokens
    result = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if clock.cuda else "cpu",
        "batch": arguments.batch,
        "tokens": tokens,
    }
    result |= card_rates(clock, device, arguments.batch, heads, tokens, side)

    # Made where it is used: 24 GB of random weights take a minute on the host.
    with torch.device(device):
        model = Transformer(width, heads, doubles, singles, 4096, 64)
        angle = torch.rand(tokens, 64) * 2 * math.pi
        rope = (angle.cos(), angle.sin())
        shapes = [(image_tokens, 64), (TEXT_TOKENS, 4096), (width,)]
        inputs = [torch.randn(arguments.batch, *shape, dtype=torch.bfloat16) for shape in shapes]
    clock.peak_gib()

    def forward():
        with torch.no_grad():
            return model(*inputs, rope)

    def train():
        model(*inputs, rope).float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    def measure(kind, times, warm):
        seconds = {"forward": clock.seconds(forward, times, warm)}
        result[f"forward {kind}, s"] = round(seconds["forward"], 4)
        result[f"forward {kind}, GiB"] = clock.peak_gib()
        seconds["train"] = clock.seconds(train, max(1, times // 2), 1)
        result[f"training step {kind}, s"] = round(seconds["train"], 4)
        result[f"training step {kind}, GiB"] = clock.peak_gib()
        result[f"NFT pairs {kind}, s"] = round(2 * seconds["forward"] + seconds["train"], 4)

    measure("eager", 5, 2)
    if arguments.compile:
        begin = time.perf_counter()
        for block in [*model.doubles, *model.singles]:
            block.compile()
        forward()
        train()
        clock.wait()
        result["compiling, s"] = round(time.perf_counter() - begin, 1)
        measure("compiled", 5, 1)
    print(json.dumps(result, indent=1))


main()
