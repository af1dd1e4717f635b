"""Scores of a separation, on waveforms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..spectrogram import STFT


def sdr(reference: Tensor, estimate: Tensor) -> float:
    """Global SDR in dB of `(C, N)` waveforms: 10 log10(sum s^2 / sum (s - e)^2) over the whole clip.

    Silence as the estimate scores 0 dB. Not museval's SDR, which is a median over one-second frames after projection.
    NaN where the reference is silent.
    """
    reference, estimate = reference.double(), estimate.double()
    signal, error = reference.square().sum(), (reference - estimate).square().sum()
    if signal == 0:
        return float("nan")
    return float(10 * torch.log10(signal / error.clamp_min(1e-12 * signal)))


def si_sdr(reference: Tensor, estimate: Tensor) -> float:
    """Scale-invariant SDR in dB of `(C, N)` waveforms (Le Roux et al. 2019, eq. 5): the reference is scaled to fit.

    Channels are pooled and means are kept. NaN where the reference is silent, or the estimate 100 dB below it: a scale
    that makes rounding errors audible is no score.
    """
    reference, estimate = reference.double(), estimate.double()
    power = reference.square().sum()
    if power == 0 or estimate.square().sum() <= 1e-10 * power:
        return float("nan")
    target = (reference * estimate).sum() / power * reference
    signal, error = target.square().sum(), (target - estimate).square().sum()
    return float(10 * torch.log10(signal.clamp_min(1e-12 * power) / error.clamp_min(1e-12 * signal)))


def log_spectral_distance(reference: Tensor, estimate: Tensor, sizes: Sequence[int] = (512, 1024, 2048, 4096)) -> float:
    """Distance in dB of log power spectra `(C, N)`: RMS over frequency, mean over frames (Gray and Markel 1976, eq. 5),
    mean over the window `sizes` (samples, 3/4 overlapping). What lies 80 dB below the reference's peak counts as there.
    """
    distances = []
    for size in sizes:
        stft = STFT(size, size // 4, size)
        power, other = (stft(wave[None])[0].abs().square() for wave in (reference, estimate))
        floor = 1e-8 * power.max().clamp_min(1e-20)
        difference = 10 * torch.log10(power.clamp_min(floor) / other.clamp_min(floor))
        distances.append(difference.square().mean(-2).sqrt().mean())
    return float(torch.stack(distances).mean())
