"""PyTorch's side of `cargo bench --package retouch-models --bench block`.

Reads `forward`, `train` or `peak_mb` line by line; answers with milliseconds or megabytes.
"""

import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

# As in models/benches/block.rs.
DIM, HEADS, BLOCKS, TOKENS, BATCH, RANK, THREADS = 256, 8, 8, 576, 4, 16, 2
EPS = 1e-6


class LoraLinear(nn.Module):
    def __init__(self, width_in, width_out, rank=0):
        super().__init__()
        self.base = nn.Linear(width_in, width_out).requires_grad_(False)
        self.down = nn.Linear(width_in, rank, bias=False) if rank else None
        self.up = nn.Linear(rank, width_out, bias=False) if rank else None

    def forward(self, x):
        y = self.base(x)
        return y if self.down is None else y + self.up(self.down(x))


def rms_norm_rope(x, cos, sin):
    x = x.reshape(BATCH, TOKENS, HEADS, DIM // HEADS).transpose(1, 2)
    x = F.rms_norm(x, (DIM // HEADS,), eps=EPS)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(3)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.modulation = LoraLinear(DIM, 6 * DIM)
        self.q, self.k, self.v, self.out = (LoraLinear(DIM, DIM, RANK) for _ in range(4))
        self.proj_in, self.proj_out = LoraLinear(DIM, 4 * DIM), LoraLinear(4 * DIM, DIM)

    def forward(self, x, condition, cos, sin):
        parts = self.modulation(F.silu(condition)).unsqueeze(1).chunk(6, 2)
        n = F.layer_norm(x, (DIM,), eps=EPS) * (1 + parts[1]) + parts[0]
        q = rms_norm_rope(self.q(n), cos, sin)
        k = rms_norm_rope(self.k(n), cos, sin)
        v = self.v(n).reshape(BATCH, TOKENS, HEADS, DIM // HEADS).transpose(1, 2)
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(a) * parts[2]
        n = F.layer_norm(x, (DIM,), eps=EPS) * (1 + parts[4]) + parts[3]
        return x + self.proj_out(F.gelu(self.proj_in(n), approximate="tanh")) * parts[5]


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, x, *rest):
        for block in self.blocks:
            x = block(x, *rest)
        return x


def main():
    torch.set_num_threads(THREADS)
    torch.manual_seed(1)
    model = Transformer()
    angles = torch.randn(TOKENS, DIM // HEADS // 2)
    inputs = torch.randn(BATCH, TOKENS, DIM), torch.randn(BATCH, DIM), angles.cos(), angles.sin()

    def forward():
        with torch.no_grad():
            model(*inputs).mean().item()

    def train():
        model.zero_grad(set_to_none=True)
        model(*inputs).square().mean().backward()

    for line in sys.stdin:
        if line.strip() == "peak_mb":
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, flush=True)
            continue
        begin = time.perf_counter()
        {"forward": forward, "train": train}[line.strip()]()
        print((time.perf_counter() - begin) * 1e3, flush=True)


if __name__ == "__main__":
    main()
