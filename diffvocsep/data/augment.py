"""A stem played faster or slower, through another equalizer, in another room: other singers, instruments, studios.

All of it happens in one Fourier transform of the whole segment. That makes the segment circular: a few milliseconds at
its ends ring, and the room's tail at its end sounds at its start. As the mixture is added up afterwards, the stems stay
exact parts of it.
"""

from __future__ import annotations

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


def alter(waveform: Tensor, length: int, response: Tensor) -> Tensor:
    """Resample `(C, N)` to `(C, length)`, so that pitch and tempo change by N / length, and filter it by the transfer
    function `response`, `(1 or C, length // 2 + 1)`."""
    spectrum = torch.fft.rfft(waveform)
    missing = response.shape[-1] - spectrum.shape[-1]
    spectrum = torch.nn.functional.pad(spectrum, (0, missing)) * response  # or cut, where that is negative
    return torch.fft.irfft(spectrum, length) * (length / waveform.shape[-1])


def equalizer(gains_db: np.ndarray, length: int, sample_rate: int) -> Tensor:
    """Response `(1, length // 2 + 1)` without phase whose gains at `KNOTS`, in dB, are joined by straight lines over
    octaves."""
    octaves = np.log2(np.arange(length // 2 + 1).clip(1) * (sample_rate / length))
    gains = 10 ** (np.interp(octaves, np.log2(KNOTS), gains_db) / 20)
    return torch.from_numpy(gains.astype(np.float32))[None]


def room(rng: np.random.Generator, channels: int, length: int, sample_rate: int) -> Tensor:
    """Response `(C, length // 2 + 1)` of a random room: the sound itself, and noise of its own in each channel, which
    decays by 60 dB in 0.1 to 1 s and holds -25 to -6 dB of its energy."""
    seconds, level = rng.uniform(0.1, 1.0), rng.uniform(-25.0, -6.0)
    times = np.arange(min(length, round(seconds * sample_rate)), dtype=np.float32) / sample_rate
    tail = rng.standard_normal((channels, len(times)), dtype=np.float32) * 10 ** (-3 * times / seconds)
    tail *= 10 ** (level / 20) / np.linalg.norm(tail, axis=1, keepdims=True)
    return 1 + torch.fft.rfft(torch.from_numpy(tail), length)
