"""Augmentation of a stem: another speed, equalizer, room and place in the stereo image, for other singers and studios.
What a studio does to a voice alone is in voice_effects.py.

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

from ..util.device import move
from ..util.rng import hashed_normal

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


def responses(rooms: Sequence[Room], channels: int, length: int, sample_rate: int, device: torch.device) -> Tensor:
    """Transfer functions `(B, C, length // 2 + 1)` of rooms, made on `device`."""
    keys = move(torch.tensor([room.seed * channels + i for room in rooms for i in range(channels)]), device)
    about = move(torch.tensor([[room.seconds, room.level_db] for room in rooms]), device)[..., None, None]
    seconds, level = about[:, 0], 10 ** (about[:, 1] / 20)
    longest = min(length, round(max(room.seconds for room in rooms) * sample_rate))
    times = torch.arange(longest, device=device) / sample_rate
    tails = hashed_normal(keys, (longest,)).unflatten(0, (len(rooms), channels))
    tails = tails * 10 ** (-3 * times / seconds) * (times < seconds)
    return 1 + torch.fft.rfft(tails * (level / tails.norm(dim=-1, keepdim=True)), length)


def augment(
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
    for size in sorted(set(samples)):
        rows = move(torch.from_numpy(np.flatnonzero(sizes == size)), waveform.device)
        part = torch.fft.rfft(waveform[rows, :, :size])[..., :bins]  # what is faster loses its highest bins
        spectrum[rows, :, : part.shape[-1]] = part * (length / size)
    gains = 10 ** (gains_db @ _lines(length, sample_rate, waveform.device) / 20)
    spectrum *= gains[:, None]
    sounding = [i for i, room in enumerate(rooms) if room]
    if sounding:
        rows = move(torch.tensor(sounding), waveform.device)
        spectrum[rows] *= responses([rooms[i] for i in sounding], waveform.shape[1], length, sample_rate, rows.device)
    return torch.fft.irfft(spectrum, length)


def rotate_stereo(waveform: Tensor, angles: Tensor) -> Tensor:
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
