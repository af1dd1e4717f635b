"""Random numbers as a function of where they are used: (seed, stream, indices).

Nothing here has a state to save. Sample 7 of the training stream, or frame block 3 of a song's noise, is the same
whatever was drawn before it, by however many workers, in whatever order; and validation cannot disturb training.
"""

from __future__ import annotations

import math
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

NOISE_THREADS = 4  # threads that draw noise: NumPy lets them work side by side
NOISE_BLOCK = 64  # frames
SPLITMIX_GAMMA, SPLITMIX_ROUNDS = (
    0x9E3779B97F4A7C15 - 2**64,
    ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64)),
)
BLOCK_OFFSET = 2**16  # blocks; keeps indices of frames before the song's start positive


def generator(seed: int, stream: str, *indices: int) -> np.random.Generator:
    """A NumPy generator for one position, `indices`, of one stream."""
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), *indices])


def normal(shape: tuple[int, ...], seed: int, stream: str, *indices: int) -> Tensor:
    """Standard normal float32 tensor of `shape` for one position of one stream."""
    return torch.from_numpy(generator(seed, stream, *indices).standard_normal(shape, dtype=np.float32))


def key(seed: int, stream: str, *indices: int) -> int:
    """An int64 key of one position of one stream, for `hashed_normal`."""
    return int(generator(seed, stream, *indices).integers(-(2**63), 2**63))


def hashed_normal(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 `(B, *shape)` of the keys, int64 `(B,)`, on their device: what the CPU draws, a GPU
    draws too, but for the rounding of its logarithm and cosine, and value k is the same whatever follows it.

    SplitMix64 (Steele, Lea and Flood 2014, figure 16) hashes key and place into 64 bits; Box and Muller (1958) make two
    normal numbers of them.
    """
    count = math.prod(shape)
    places = torch.arange(1, count // 2 + 2, device=keys.device)
    bits = keys[:, None] + places * SPLITMIX_GAMMA  # integers wrap around
    for shift, factor in SPLITMIX_ROUNDS:
        bits = (bits ^ _shifted(bits, shift)) * factor
    bits = bits ^ _shifted(bits, 31)
    radius = (-2 * ((_shifted(bits, 32) + 0.5) * 2**-32).log()).sqrt()
    angle = (bits & 0xFFFFFF) * (2 * math.pi * 2**-24)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)[:, :count].unflatten(1, shape)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """A logical shift to the right; torch's own repeats the sign."""
    return (bits >> places) & (2 ** (64 - places) - 1)


def frame_noise(channels: int, bins: int, first: int, frames: int, seed: int, *indices: int) -> Tensor:
    """Noise `(C, F, T)` of the frames `first .. first + frames` of a song: a frame's noise does not depend on the chunk
    it is computed in."""
    blocks = range(first // NOISE_BLOCK, (first + frames - 1) // NOISE_BLOCK + 1)
    shape = (channels, bins, NOISE_BLOCK)
    with ThreadPoolExecutor(NOISE_THREADS, "noise") as threads:
        drawn = list(threads.map(lambda b: normal(shape, seed, "frames", *indices, BLOCK_OFFSET + b), blocks))
    noise = torch.cat(drawn, dim=-1)
    start = first - blocks[0] * NOISE_BLOCK
    return noise[..., start : start + frames]
