"""Retouch's random numbers in numpy, so that both sides of the comparison draw the same.

Seeds and permutations are blake3 (`proto/src/seed.rs`), noise is ChaCha12 through a ziggurat (`models/src/noise.rs`; the
crates rand_core 0.10 and rand_distr 0.6). Only the check of numbers uses this; timed runs draw from torch.
"""

import struct

import numpy as np
from blake3 import blake3

U64 = (1 << 64) - 1


def derive(run_seed, purpose, iteration=0, group=0, sample=0, step=0):
    hasher = blake3(derive_key_context="retouch v1 seed")
    hasher.update(struct.pack("<QIIII", run_seed, iteration, group, sample, step) + purpose.encode())
    return int.from_bytes(hasher.digest(8), "little")


def permutation(seed, length):
    stream = blake3(struct.pack("<Q", seed), derive_key_context="retouch v1 permutation")
    order, position = list(range(length)), 0
    for last in reversed(range(1, length)):
        bound = last + 1
        usable = (U64 + 1) // bound * bound
        while True:
            value = int.from_bytes(stream.digest(8, seek=position), "little")
            position += 8
            if value < usable:
                break
        chosen = value % bound
        order[last], order[chosen] = order[chosen], order[last]
    return order


def chacha12(seed, words):
    """At least `words` u64 values of the generator that `seed_from_u64` makes of a seed."""
    state, key = seed, []
    for _ in range(8):  # a PCG32 stream fills the key
        state = (state * 6364136223846793005 + 11634580027462260723) & U64
        shifted, turn = (((state >> 18) ^ state) >> 27) & 0xFFFFFFFF, state >> 59
        key.append((shifted >> turn | shifted << (32 - turn)) & 0xFFFFFFFF)
    blocks = words // 8 + 1
    start = np.zeros((16, blocks), np.uint32)
    start[:4] = np.array([0x61707865, 0x3320646E, 0x79622D32, 0x6B206574], np.uint32)[:, None]
    start[4:12] = np.array(key, np.uint32)[:, None]
    start[12] = np.arange(blocks)
    x = start.copy()

    def mix(a, b, c, d):
        for first, second, third, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[first] += x[second]
            turned = x[third] ^ x[first]
            x[third] = turned << np.uint32(turn) | turned >> np.uint32(32 - turn)

    for _ in range(6):
        for i in range(4):
            mix(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            mix(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    x += start
    halves = x.T.reshape(-1).astype(np.uint64)
    return halves[0::2] | halves[1::2] << np.uint64(32)


def layers():
    """Edges and densities of the ziggurat's 256 layers of equal area under exp(-x^2 / 2)."""
    tail, area = 3.654152885361008796, 4.92867323399e-3
    density = lambda x: np.exp(-x * x / 2)
    edges = [area / density(tail), tail]
    while len(edges) < 256:
        edges.append(np.sqrt(-2 * np.log(area / edges[-1] + density(edges[-1]))))
    edges = np.array(edges + [0.0])
    return edges, density(edges)


EDGES, DENSITIES = layers()


def normal(seed, count):
    """`count` standard Gaussians, f32."""
    raw = chacha12(seed, count + count // 8 + 64)
    # Twelve bits go to the layer, 52 to a number in -1..1.
    u = (raw >> np.uint64(12) | np.uint64(0x400) << np.uint64(52)).view(np.float64) - 3.0
    layer = (raw & np.uint64(255)).astype(np.int64)
    x = u * EDGES[layer]
    hard = np.flatnonzero(np.abs(x) >= EDGES[layer + 1])
    found, at = [], 0
    size = 0
    for place in hard:
        if place < at:
            continue
        found.append(x[at:place])
        size += place - at
        if size >= count:
            break
        i, at = layer[place], place + 1
        if i == 0:
            value, at = beyond_tail(raw, at, u[place])
            found.append([value])
            size += 1
        else:
            uniform = float(raw[at] >> np.uint64(11)) * 2.0**-53
            at += 1
            if DENSITIES[i + 1] + (DENSITIES[i] - DENSITIES[i + 1]) * uniform < np.exp(-x[place] ** 2 / 2):
                found.append([x[place]])
                size += 1
    found.append(x[at : at + max(0, count - size)])
    return np.concatenate(found)[:count].astype(np.float32)


def beyond_tail(raw, at, u):
    tail = EDGES[1]
    while True:
        pair = raw[at : at + 2] >> np.uint64(12) | np.uint64(0x3FF) << np.uint64(52)
        first, second = pair.view(np.float64) - (1 - 2.0**-53)
        at += 2
        x, y = np.log(first) / tail, np.log(second)
        if -2 * y >= x * x:
            return (x - tail if u < 0 else tail - x), at
