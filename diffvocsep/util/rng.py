"""Random numbers as a function of where they are used: (seed, stream, indices).

Nothing here has a state to save. Sample 7 of the training stream, or frame block 3 of a song's noise, is the same
whatever was drawn before it, by however many workers, in whatever order; and validation cannot disturb training.
"""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

DRAWING = 4  # threads that draw noise: NumPy lets them work side by side
NOISE_BLOCK = 64  # frames
ORIGIN = 2**16  # blocks; keeps indices of frames before the song's start positive


def generator(seed: int, stream: str, *indices: int) -> np.random.Generator:
    """A NumPy generator for one place of one stream."""
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), *indices])


def normal(shape: tuple[int, ...], seed: int, stream: str, *indices: int) -> Tensor:
    """Standard normal float32 tensor of `shape` for one place of one stream."""
    return torch.from_numpy(generator(seed, stream, *indices).standard_normal(shape, dtype=np.float32))


def frame_noise(channels: int, bins: int, first: int, frames: int, seed: int, *indices: int) -> Tensor:
    """Noise `(C, F, T)` of the frames `first .. first + frames` of a song: a frame's noise does not depend on the chunk
    it is computed in."""
    blocks = range(first // NOISE_BLOCK, (first + frames - 1) // NOISE_BLOCK + 1)
    shape = (channels, bins, NOISE_BLOCK)
    with ThreadPoolExecutor(DRAWING, "noise") as threads:
        drawn = list(threads.map(lambda b: normal(shape, seed, "frames", *indices, ORIGIN + b), blocks))
    noise = torch.cat(drawn, dim=-1)
    start = first - blocks[0] * NOISE_BLOCK
    return noise[..., start : start + frames]
