"""A stem played faster or slower and through another equalizer: other singers, other instruments, other studios.

Both happen in one Fourier transform of the whole segment. That makes the segment circular, so a few milliseconds at its
ends ring; as the mixture is added up afterwards, the stems stay exact parts of it.
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


def alter(waveform: Tensor, length: int, sample_rate: int, gains_db: np.ndarray) -> Tensor:
    """Resample `(C, N)` to `(C, length)`, so that pitch and tempo change by N / length, and filter it.

    Args:
        gains_db: `(9,)` gains of a zero-phase equalizer at `KNOTS`, in dB, joined by straight lines over octaves.
    """
    spectrum = torch.fft.rfft(waveform)
    bins = length // 2 + 1
    spectrum = torch.nn.functional.pad(spectrum, (0, bins - spectrum.shape[-1]))  # or cut, where that is negative
    octaves = np.log2(np.arange(bins).clip(1) * (sample_rate / length))
    gains = 10 ** (np.interp(octaves, np.log2(KNOTS), gains_db) / 20)
    spectrum = spectrum * torch.from_numpy(gains.astype(np.float32))
    return torch.fft.irfft(spectrum, length) * (length / waveform.shape[-1])
