"""What a studio does to a voice: a second take, harmonies, echoes, ..., another pitch. (Another singer: mixing.py.)

Each effect is drawn once (`draw`) and then turns a waveform `(C, N)` into another of the same shape. Those of one kind
work on a batch `(B, C, N)` together (`apply`), on any device; a GPU is never waited for. Voices that were recorded dry
become the kind that songs have. The energy stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..spectrogram import STFT
from ..util.device import move

N_FFT, HOP = 2048, 512  # of the phase vocoder, in samples
FRAME = 256  # samples, over which levels are measured
FLOOR = 1e-5  # -100 dB: silence, to what divides
REPEATS = 4  # of an echo
FRACTION = 24  # bits of a sample: float32 cannot count those of a minute and their parts

INTERVALS = (-12.0, -5.0, -4.0, -3.0, 3.0, 4.0, 5.0, 7.0, 12.0)  # semitones: thirds, a fourth, a fifth, an octave


def shift_pitch(waveform: Tensor, semitones: float | Sequence[float]) -> Tensor:
    """`(..., N)`, higher by `semitones` (one number, or one for each item of `(B, C, N)`), at the same pace; formants
    move along.

    A phase vocoder (Flanagan and Golden 1966) makes it longer, resampling makes it as long as before. What would
    end up above the Nyquist frequency is left out, or it would fold back.
    """
    length, stft = waveform.shape[-1], STFT(N_FFT, HOP, N_FFT)
    factors = 2 ** (np.asarray(semitones, np.float64).reshape(-1, 1) / 12)
    padded = F.pad(waveform.reshape(len(factors), -1, length), (0, max(0, N_FFT - length)))
    spectrum = stft(F.pad(padded, (N_FFT // 2, N_FFT // 2), mode="reflect"), center=False)
    remains = np.arange(spectrum.shape[-2]) * factors <= N_FFT // 2  # (B, F)
    spectrum = spectrum * move(torch.from_numpy(remains), spectrum.device)[:, None, :, None]
    frames = int(np.ceil(spectrum.shape[-1] * factors.max())) + N_FFT // HOP  # past its end an item is silent
    stretched = stft.inverse(stretch(spectrum, factors, frames), (frames - 1) * HOP)
    steps = move(torch.from_numpy((factors * 2**FRACTION).round()).long(), waveform.device)[..., None]
    positions = torch.arange(length, device=waveform.device) * steps  # (B, 1, N), in parts of a sample
    offsets = (positions & (2**FRACTION - 1)) * 2.0**-FRACTION
    return interpolate(stretched, positions >> FRACTION, offsets).reshape(waveform.shape)


def stretch(spectrum: Tensor, factors: np.ndarray, frames: int) -> Tensor:
    """Complex `(B, C, F, T)` -> `(B, C, F, frames)`, each item longer by its factor, `(B, 1)`; silence past the end.

    Frame k is taken at the place k / factor. A bin turns from there to the next frame as far as from one frame of the
    original to the next: the hop is the same.
    """
    steps = np.minimum(np.arange(frames) / factors, spectrum.shape[-1])
    before = move(torch.from_numpy(steps).long(), spectrum.device)[:, None, None].expand(*spectrum.shape[:-1], -1)
    share = move(torch.from_numpy(steps % 1).to(spectrum.real.dtype), spectrum.device)[:, None, None]
    magnitude, angle = F.pad(spectrum.abs(), (0, 2)), F.pad(spectrum.angle(), (0, 2))
    turned = (angle.gather(-1, before + 1) - angle.gather(-1, before)).cumsum(-1)
    phase = angle[..., :1] + F.pad(turned[..., :-1], (1, 0))
    return torch.polar(torch.lerp(magnitude.gather(-1, before), magnitude.gather(-1, before + 1), share), phase)


def interpolate(waveform: Tensor, places: Tensor, offsets: Tensor) -> Tensor:
    """Values of `(..., C, N)` at samples `places`, int64, plus `offsets`, `(..., 1 or C, M)` or `(M,)`, on the cubic
    through four neighbours (Catmull-Rom); zero outside."""
    whole = offsets.floor()
    u, first = offsets - whole, places + whole.long()
    weights = (
        ((-u + 2) * u - 1) * u / 2,
        ((3 * u - 5) * u * u + 2) / 2,
        ((-3 * u + 4) * u + 1) * u / 2,
        (u - 1) * u * u / 2,
    )
    padded, length = F.pad(waveform, (2, 3)), waveform.shape[-1]
    total = waveform.new_zeros(())
    for i, weight in enumerate(weights):
        at = (first + i + 1).clamp(0, length + 4).expand(*waveform.shape[:-1], -1)
        total = total + padded.gather(-1, at) * weight
    return total * ((first >= 0) & ((first < length - 1) | ((first == length - 1) & (u == 0))))


def levels(waveform: Tensor, frames: int | Sequence[int]) -> Tensor:
    """RMS of `(..., C, N)` over all channels, smoothed over `frames` pieces of 256 samples to each side (one number, or
    one for each item of a batch), at every sample, `(..., N)`."""
    *batch, channels, length = waveform.shape
    power = waveform.reshape(-1, channels, length).square().mean(1, keepdim=True)
    power = F.avg_pool1d(F.pad(power, (0, -length % FRAME)), FRAME)[:, 0]
    frames = [frames] if isinstance(frames, int) else frames
    near, counts = neighbours(power, frames, frames)
    return interpolate_frames((near * counts).sum(-1) / counts.sum(-1), length).sqrt().reshape(*batch, length)


def neighbours(values: Tensor, before: Sequence[int], after: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Of `(B, M)` each value with those around it, `(B, M, W)`, and 1 where one counts, else 0: where it exists, and is
    at most so many places before or after, as its item says."""
    back, ahead = max(before), max(after)
    near = F.pad(values, (back, ahead)).unfold(-1, back + ahead + 1, 1)
    exist = F.pad(torch.ones_like(values[0]), (back, ahead)).unfold(-1, back + ahead + 1, 1)
    places, limits = torch.arange(-back, ahead + 1), torch.tensor([list(before), list(after)])[..., None]
    counted = move((-limits[0] <= places) & (places <= limits[1]), values.device)
    return near, counted[:, None] * exist


def interpolate_frames(values: Tensor, length: int) -> Tensor:
    """A value for each piece of 256 samples, `(B, M)`, joined by straight lines at every sample, `(B, length)`."""
    return F.interpolate(values[:, None], scale_factor=FRAME, mode="linear")[:, 0, :length]


def match_energy(waveform: Tensor, before: Tensor) -> Tensor:
    """`(B, C, N)` with the energies of `before`."""
    return waveform * (_norm(before) / _norm(waveform).clamp_min(FLOOR))


def _norm(waveform: Tensor) -> Tensor:
    return waveform.square().sum(dim=(-2, -1), keepdim=True).sqrt()


def _numbers(waveforms: Tensor, *columns: Sequence) -> list[Tensor]:
    """What a batch of effects was drawn with, a column each, as `(B, 1, 1)`, or `(B, C, 1)` where a column has rows."""
    tables = [torch.tensor(column, dtype=torch.float32).reshape(len(waveforms), -1, 1) for column in columns]
    return [*move(torch.cat(tables, dim=1), waveforms.device).split([table.shape[1] for table in tables], dim=1)]


class Effect:
    """What one kind of alteration is drawn with."""

    @classmethod
    def apply(cls, effects: Sequence, waveforms: Tensor, sample_rate: int) -> Tensor:
        """`(B, C, N)` of voices, each altered by an effect of its own; sample rate in Hz."""
        raise NotImplementedError

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """`(C, N)` -> `(C, N)`."""
        return self.apply([self], waveform[None], sample_rate)[0]


@dataclass(frozen=True)
class Pitch(Effect):
    """The whole voice, higher or lower."""

    semitones: float

    @classmethod
    def apply(cls, effects: Sequence[Pitch], waveforms: Tensor, sample_rate: int) -> Tensor:
        return match_energy(shift_pitch(waveforms, [effect.semitones for effect in effects]), waveforms)


@dataclass(frozen=True)
class Harmony(Effect):
    """The same words at an interval, 4 to 12 dB quieter."""

    semitones: float
    gain: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Harmony:
        return cls(float(rng.choice(INTERVALS)), 10 ** (rng.uniform(-12, -4) / 20))

    @classmethod
    def apply(cls, effects: Sequence[Harmony], waveforms: Tensor, sample_rate: int) -> Tensor:
        (gain,) = _numbers(waveforms, [effect.gain for effect in effects])
        second = shift_pitch(waveforms, [effect.semitones for effect in effects])
        return match_energy(waveforms + gain * second, waveforms)


@dataclass(frozen=True)
class Doubling(Effect):
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

    @property
    def depth(self) -> float:
        """s. A delay of depth * sin(2 pi f t) changes the pitch by the factor 1 - 2 pi f depth * cos(2 pi f t)."""
        return (2 ** (self.cents / 1200) - 1) / (2 * np.pi * self.hertz)

    @classmethod
    def apply(cls, effects: Sequence[Doubling], waveforms: Tensor, sample_rate: int) -> Tensor:
        late, phases, depth, hertz, gain = _numbers(
            waveforms,
            [[effect.seconds[min(i, 1)] for i in range(waveforms.shape[1])] for effect in effects],
            [[effect.phases[min(i, 1)] for i in range(waveforms.shape[1])] for effect in effects],
            [effect.depth for effect in effects], [effect.hertz for effect in effects],
            [effect.gain for effect in effects],
        )  # fmt: skip
        places = torch.arange(waveforms.shape[-1], device=waveforms.device)
        swing = depth * torch.sin(2 * np.pi * hertz * (places / sample_rate) + phases)
        return match_energy(waveforms + gain * interpolate(waveforms, places, -(late + swing) * sample_rate), waveforms)


@dataclass(frozen=True)
class Compressor(Effect):
    """What is louder than `threshold_db` below the loudest comes out `ratio` times less above it."""

    threshold_db: float
    ratio: float
    frames: int  # to each side, over which the level is smoothed

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Compressor:
        return cls(rng.uniform(-30, -10), rng.uniform(2, 8), int(rng.integers(1, 8)))

    @classmethod
    def apply(cls, effects: Sequence[Compressor], waveforms: Tensor, sample_rate: int) -> Tensor:
        db, ratio = _numbers(
            waveforms, [effect.threshold_db for effect in effects], [effect.ratio for effect in effects]
        )
        level = levels(waveforms, [effect.frames for effect in effects])[:, None]
        threshold = level.amax(-1, keepdim=True) * 10 ** (db / 20)
        gain = (level.clamp_min(FLOOR) / threshold.clamp_min(FLOOR)).clamp_min(1).pow(1 / ratio - 1)
        return match_energy(waveforms * gain, waveforms)


@dataclass(frozen=True)
class Saturation(Effect):
    """Soft clipping: tanh of the waveform, whose RMS is brought to `drive` first."""

    drive: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Saturation:
        return cls(10 ** (rng.uniform(-15, 3) / 20))

    @classmethod
    def apply(cls, effects: Sequence[Saturation], waveforms: Tensor, sample_rate: int) -> Tensor:
        (drive,) = _numbers(waveforms, [effect.drive for effect in effects])
        rms = waveforms.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp_min(FLOOR)
        return match_energy(torch.tanh(waveforms * (drive / rms)), waveforms)


@dataclass(frozen=True)
class Echo(Effect):
    """Four repeats, `seconds` apart, each `gain` times the one before."""

    seconds: float
    gain: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Echo:
        return cls(rng.uniform(0.06, 0.6), 10 ** (rng.uniform(-18, -6) / 20))

    @classmethod
    def apply(cls, effects: Sequence[Echo], waveforms: Tensor, sample_rate: int) -> Tensor:
        late, gain = _numbers(
            waveforms, [round(effect.seconds * sample_rate) for effect in effects], [effect.gain for effect in effects]
        )
        places, total = torch.arange(waveforms.shape[-1], device=waveforms.device), waveforms
        for k in range(1, REPEATS + 1):
            at = places - k * late.long()
            total = total + gain**k * waveforms.gather(-1, at.clamp_min(0).expand_as(waveforms)) * (at >= 0)
        return match_energy(total, waveforms)


VOICE_CHAIN = {  # in this order, after `Pitch`: key of `data` that says how often -> effect
    "compressor": Compressor, "saturation": Saturation, "harmony": Harmony, "doubling": Doubling, "echo": Echo,
}  # fmt: skip


def apply_effects(waveforms: Tensor, chains: Sequence[Sequence[Effect]], sample_rate: int) -> Tensor:
    """`(B, C, N)` of voices, each through its own effects, in the order of `VOICE_CHAIN`."""
    for kind in (Pitch, *VOICE_CHAIN.values()):
        found = {i: effect for i, chain in enumerate(chains) for effect in chain if type(effect) is kind}
        if found:
            rows = move(torch.tensor([*found]), waveforms.device)
            altered = kind.apply([*found.values()], waveforms[rows], sample_rate)
            waveforms = waveforms.index_copy(0, rows, altered)
    return waveforms


@dataclass(frozen=True)
class Limiter:
    """The gain that keeps a mixture below `threshold_db` of its own peak; both of its stems get the same (LimitAug:
    Jeon and Lee 2022, arXiv 2208.14355)."""

    threshold_db: float
    frames: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Limiter:
        return cls(rng.uniform(-12, -2), int(rng.integers(2, 12)))

    @classmethod
    def gains(cls, limiters: Sequence[Limiter], mixtures: Tensor) -> Tensor:
        """`(B, C, N)` -> `(B, 1, N)`, at most 1."""
        length, frames = mixtures.shape[-1], [limiter.frames for limiter in limiters]
        peaks = F.max_pool1d(F.pad(mixtures.abs().amax(1, keepdim=True), (0, -length % FRAME)), FRAME)[:, 0]
        near, counts = neighbours(peaks, frames, frames)  # ahead of a peak, too
        near, counts = neighbours((near * counts).amax(-1), [n // 2 for n in frames], [(n - 1) // 2 for n in frames])
        envelope = interpolate_frames((near * counts).sum(-1) / counts.sum(-1), length)[:, None]
        (db,) = _numbers(mixtures, [limiter.threshold_db for limiter in limiters])
        threshold = envelope.amax(-1, keepdim=True).clamp_min(FLOOR) * 10 ** (db / 20)
        return (threshold / envelope.clamp_min(FLOOR)).clamp_max(1)
