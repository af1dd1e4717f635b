"""A stem played faster or slower, through another equalizer, in another room, at another place: other singers, studios.

All of it happens in one Fourier transform of the whole segment. That makes the segment circular: a few milliseconds at
its ends ring, and the room's tail at its end sounds at its start. As the mixture is added up afterwards, the stems stay
exact parts of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

KNOTS = np.array([40.0, 90.0, 200.0, 450.0, 1000.0, 2200.0, 5000.0, 11000.0, 22000.0])  # Hz, about an octave apart


def source_length(length: int, speed: float) -> int:
    """Samples to read for `length` samples at `speed` times the pace: length * speed, rounded to 1 in about 200.

    Multiples of a power of two have no large prime factors, which would make the Fourier transform slow.
    """
    step = 2 ** max(0, length.bit_length() - 8)
    return length if speed == 1 else max(1, round(length * speed / step)) * step


@dataclass(frozen=True)
class Room:
    """Noise of its own in each channel, which decays by 60 dB in `seconds` and holds `level_db` of the energy of the
    dry sound."""

    seed: int
    seconds: float
    level_db: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Room:
        return cls(int(rng.integers(2**32)), rng.uniform(0.1, 1.0), rng.uniform(-25.0, -6.0))

    def response(self, channels: int, length: int, sample_rate: int) -> Tensor:
        """Transfer function `(C, length // 2 + 1)`."""
        times = np.arange(min(length, round(self.seconds * sample_rate)), dtype=np.float32) / sample_rate
        tail = np.random.default_rng(self.seed).standard_normal((channels, len(times)), dtype=np.float32)
        tail *= 10 ** (-3 * times / self.seconds)
        tail *= 10 ** (self.level_db / 20) / np.linalg.norm(tail, axis=1, keepdims=True)
        return 1 + torch.fft.rfft(torch.from_numpy(tail), length)


def alter(
    waveform: Tensor,
    samples: Sequence[int],
    length: int,
    sample_rate: int,
    gains_db: Tensor,
    rooms: Sequence[Room | None],
) -> Tensor:
    """Resample a batch `(B, C, N)` to `(B, C, length)`, so that pitch and tempo change, and filter it.

    Args:
        samples: of each item, how many of its N samples become `length`: its speed is samples / length.
        gains_db: `(B, 9)` gains of zero-phase equalizers at `KNOTS`, in dB, joined by straight lines over octaves.
        rooms: where each item sounds; None adds nothing.
    """
    bins, sizes = length // 2 + 1, np.array(samples)
    spectrum = waveform.new_zeros(*waveform.shape[:-1], bins, dtype=torch.complex64)
    for size in set(samples):
        rows = torch.from_numpy(np.flatnonzero(sizes == size)).to(waveform.device)
        part = torch.fft.rfft(waveform[rows, :, :size])[..., :bins]  # what is faster loses its highest bins
        spectrum[rows, :, : part.shape[-1]] = part * (length / size)
    gains = 10 ** (gains_db @ _lines(length, sample_rate, waveform.device) / 20)
    spectrum *= gains[:, None]
    for i, room in enumerate(rooms):
        if room:
            spectrum[i] *= room.response(waveform.shape[1], length, sample_rate).to(waveform.device)
    return torch.fft.irfft(spectrum, length)


def turn(waveform: Tensor, angles: Tensor) -> Tensor:
    """Turn the stereo images of `(B, 2, N)` by angles `(B,)` in radians: pi / 4 takes the centre to the left, pi / 2 to
    opposite phases. The energy stays. Songs keep their voices where they like; a model must not find them by place."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    left, right = waveform.unbind(1)
    return torch.stack([cos * left + sin * right, cos * right - sin * left], dim=1)


@lru_cache(maxsize=8)
def _lines(length: int, sample_rate: int, device: torch.device) -> Tensor:
    """`(9, F)`: the share of each knot in the gain of each bin."""
    octaves = np.log2(np.arange(length // 2 + 1).clip(1) * (sample_rate / length))
    shares = [np.interp(octaves, np.log2(KNOTS), one) for one in np.eye(len(KNOTS))]
    return torch.from_numpy(np.array(shares, np.float32)).to(device)
