"""What a studio does to a voice: a second take beside it, harmonies, echoes, compression, saturation, another pitch.

Each effect is drawn once (`draw`) and then turns a waveform `(C, N)` into another of the same shape, on any device.
Voices that were recorded dry become the kind that songs have. The energy stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

N_FFT, HOP = 2048, 512  # of the phase vocoder, in samples
FRAME = 256  # samples, over which levels are measured
FLOOR = 1e-5  # -100 dB: silence, to what divides

INTERVALS = (-12.0, -5.0, -4.0, -3.0, 3.0, 4.0, 5.0, 7.0, 12.0)  # semitones: thirds, a fourth, a fifth, an octave

Effect = Callable[[Tensor, int], Tensor]  # (C, N), sample rate in Hz -> (C, N)


def shift_pitch(waveform: Tensor, semitones: float) -> Tensor:
    """`(C, N)` -> `(C, N)`, higher by `semitones`, at the same pace; formants move along.

    A phase vocoder (Flanagan and Golden 1966; torchaudio's) makes it longer, resampling makes it as long as before.
    """
    length, factor = waveform.shape[-1], 2 ** (semitones / 12)
    waveform = F.pad(waveform, (0, max(0, N_FFT - length)))  # of less than half a window there is no spectrum
    window = torch.hann_window(N_FFT, device=waveform.device)
    spectrum = torch.stft(waveform, N_FFT, HOP, window=window, return_complex=True)
    advance = torch.linspace(0, np.pi * HOP, spectrum.shape[-2], device=waveform.device)[:, None]
    longer = torchaudio.functional.phase_vocoder(spectrum, 1 / factor, advance)
    stretched = torch.istft(longer, N_FFT, HOP, window=window)
    return at_positions(stretched, torch.arange(length, device=waveform.device) * factor)


def at_positions(waveform: Tensor, positions: Tensor) -> Tensor:
    """Values of `(C, N)` at fractional sample positions `(M,)`, `(C, M)`, on the cubic through four neighbours
    (Catmull-Rom); zero outside."""
    base = positions.floor()
    u, first = positions - base, base.long()
    weights = (
        ((-u + 2) * u - 1) * u / 2,
        ((3 * u - 5) * u * u + 2) / 2,
        ((-3 * u + 4) * u + 1) * u / 2,
        (u - 1) * u * u / 2,
    )
    padded = F.pad(waveform, (2, 3))
    last = padded.shape[-1] - 1
    total = torch.zeros(len(waveform), len(positions), dtype=waveform.dtype, device=waveform.device)
    for i, weight in enumerate(weights):
        total += padded[:, (first + i + 1).clamp(0, last)] * weight
    inside = (positions >= 0) & (positions <= waveform.shape[-1] - 1)
    return total * inside


def levels(waveform: Tensor, frames: int) -> Tensor:
    """RMS of `(C, N)` over all channels, smoothed over `frames` pieces of 256 samples, at every sample, `(N,)`."""
    length = waveform.shape[-1]
    power = F.avg_pool1d(F.pad(waveform.square().mean(0)[None, None], (0, -length % FRAME)), FRAME)
    smooth = F.avg_pool1d(power, 2 * frames + 1, stride=1, padding=frames, count_include_pad=False)
    return F.interpolate(smooth, scale_factor=FRAME, mode="linear")[0, 0, :length].sqrt()


def as_loud_as(waveform: Tensor, before: Tensor) -> Tensor:
    """`waveform` with the energy of `before`."""
    return waveform * (before.norm() / waveform.norm().clamp_min(FLOOR))


@dataclass(frozen=True)
class Pitch:
    """The whole voice, higher or lower."""

    semitones: float

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        return as_loud_as(shift_pitch(waveform, self.semitones), waveform)


@dataclass(frozen=True)
class Harmony:
    """The same words at an interval, 4 to 12 dB quieter."""

    semitones: float
    gain: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Harmony:
        return cls(float(rng.choice(INTERVALS)), 10 ** (rng.uniform(-12, -4) / 20))

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        return as_loud_as(waveform + self.gain * shift_pitch(waveform, self.semitones), waveform)


@dataclass(frozen=True)
class Doubling:
    """A second take in each channel, `seconds` late, whose pitch drifts by up to `cents`: doubling when slow, chorus
    when faster."""

    seconds: tuple[float, float]  # of the first and of all other channels
    cents: float
    hertz: float
    phases: tuple[float, float]
    gain: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Doubling:
        late, phases = rng.uniform(0.007, 0.03, 2), rng.uniform(0, 2 * np.pi, 2)
        gain = 10 ** (rng.uniform(-10, 0) / 20)
        return cls(tuple(late), rng.uniform(3, 15), rng.uniform(0.2, 1.5), tuple(phases), gain)

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        times = torch.arange(waveform.shape[-1], device=waveform.device) / sample_rate
        # A delay of depth * sin(2 pi f t) changes the pitch by the factor 1 - 2 pi f depth * cos(2 pi f t).
        depth = (2 ** (self.cents / 1200) - 1) / (2 * np.pi * self.hertz)
        takes = []
        for i, channel in enumerate(waveform):
            swing = depth * torch.sin(2 * np.pi * self.hertz * times + self.phases[min(i, 1)])
            takes.append(at_positions(channel[None], (times - self.seconds[min(i, 1)] - swing) * sample_rate))
        return as_loud_as(waveform + self.gain * torch.cat(takes), waveform)


@dataclass(frozen=True)
class Compressor:
    """What is louder than `threshold_db` below the loudest comes out `ratio` times less above it."""

    threshold_db: float
    ratio: float
    frames: int  # to each side, over which the level is smoothed

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Compressor:
        return cls(rng.uniform(-30, -10), rng.uniform(2, 8), int(rng.integers(1, 8)))

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        level = levels(waveform, self.frames)
        threshold = level.max() * 10 ** (self.threshold_db / 20)
        gain = (level.clamp_min(FLOOR) / threshold.clamp_min(FLOOR)).clamp_min(1).pow(1 / self.ratio - 1)
        return as_loud_as(waveform * gain, waveform)


@dataclass(frozen=True)
class Saturation:
    """Soft clipping: tanh of the waveform, whose RMS is brought to `drive` first."""

    drive: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Saturation:
        return cls(10 ** (rng.uniform(-15, 3) / 20))

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        rms = waveform.square().mean().sqrt().clamp_min(FLOOR)
        return as_loud_as(torch.tanh(waveform * (self.drive / rms)), waveform)


@dataclass(frozen=True)
class Echo:
    """Four repeats, `seconds` apart, each `gain` times the one before."""

    seconds: float
    gain: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Echo:
        return cls(rng.uniform(0.06, 0.6), 10 ** (rng.uniform(-18, -6) / 20))

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        total, late = waveform.clone(), round(self.seconds * sample_rate)
        for k in range(1, 5):
            if k * late < waveform.shape[-1]:
                total[:, k * late :] += self.gain**k * waveform[:, : -k * late]
        return as_loud_as(total, waveform)


@dataclass(frozen=True)
class Limiter:
    """The gain that keeps a mixture below `threshold_db` of its own peak; both of its stems get the same (LimitAug:
    Jeon and Lee 2022, arXiv 2208.14355)."""

    threshold_db: float
    frames: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Limiter:
        return cls(rng.uniform(-12, -2), int(rng.integers(2, 12)))

    def gain(self, mixture: Tensor) -> Tensor:
        """`(C, N)` -> `(N,)`, at most 1."""
        length = mixture.shape[-1]
        peaks = F.max_pool1d(F.pad(mixture.abs().amax(0)[None, None], (0, -length % FRAME)), FRAME)
        peaks = F.max_pool1d(peaks, 2 * self.frames + 1, stride=1, padding=self.frames)  # ahead of a peak, too
        smooth = F.avg_pool1d(peaks, self.frames, stride=1, padding=self.frames // 2, count_include_pad=False)
        envelope = F.interpolate(smooth[..., : peaks.shape[-1]], scale_factor=FRAME, mode="linear")[0, 0, :length]
        threshold = envelope.max().clamp_min(FLOOR) * 10 ** (self.threshold_db / 20)
        return (threshold / envelope.clamp_min(FLOOR)).clamp_max(1)
