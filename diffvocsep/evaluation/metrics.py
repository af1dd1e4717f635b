"""Scores of a separation, on waveforms. scores.py calls each for every song and names the columns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache

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


def stft_distance(reference: Tensor, estimate: Tensor) -> float:
    """Multi-resolution STFT distance of `(C, N)`, lower is better: spectral convergence plus the mean difference of log
    magnitudes, at three window lengths (Yamamoto et al. 2020, eq. 3 to 6), by the package `auraloss` as it comes.

    NaN where the reference is silent, or too short for a window.
    """
    from auraloss.freq import MultiResolutionSTFTLoss

    distance = MultiResolutionSTFTLoss()
    if not reference.any() or reference.shape[-1] <= max(distance.fft_sizes) // 2:
        return float("nan")
    return float(distance(estimate[None].float(), reference[None].float()))


def log_wmse(mixture: Tensor, reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
    """logWMSE of `(C, N)`, higher is better: the error, weighted as the ear hears frequencies, in relation to the
    mixture, on a logarithmic scale of its own (73.7 is perfect), by the package `torch-log-wmse` as it comes.

    It is defined for silent references, too.
    """
    signals = mixture[None].float(), estimate[None, :, None].float(), reference[None, :, None].float()
    return float(_log_wmse(sample_rate)(*signals))


@lru_cache(maxsize=4)
def _log_wmse(sample_rate: int) -> torch.nn.Module:
    from torch_log_wmse import LogWMSE

    return LogWMSE(sample_rate=sample_rate)


def bleedless_fullness(reference: Tensor, estimate: Tensor, sample_rate: int) -> tuple[float, float]:
    """How little the estimate `(C, N)` adds to the reference, and how little it lacks: 100 is perfect.

    100 / (1 + d), with d the mean of what the estimate has too much (too little) in dB, over the bins of a mel
    spectrogram where it has too much (too little); both reach down 80 dB from their own peak. As `bleed_full` of
    github.com/ZFTurbo/Music-Source-Separation-Training, metrics.py. NaN where the reference is silent.
    """
    if not reference.any():
        return float("nan"), float("nan")
    wanted, found = (_mel_db(wave, sample_rate) for wave in (reference, estimate))
    difference = found - wanted

    def score(excess: Tensor) -> float:
        return 100 / (1 + float(excess[excess > 0].mean())) if (excess > 0).any() else 100.0

    return score(difference), score(-difference)


def _mel_db(waveform: Tensor, sample_rate: int, n_fft: int = 4096, n_mels: int = 512) -> Tensor:
    """`(C, N)` -> mel spectrogram in dB, `(C, n_mels, T)`, of frames a quarter of `n_fft` apart."""
    from torchaudio.functional import amplitude_to_DB

    window = torch.hann_window(n_fft)
    spectrum = torch.stft(
        waveform.float(), n_fft, n_fft // 4, window=window, pad_mode="constant", return_complex=True
    ).abs()
    mel = _mel_filters(n_fft // 2 + 1, n_mels, sample_rate) @ spectrum
    return amplitude_to_DB(mel, 20.0, 1e-10, 0.0, top_db=80.0)


@lru_cache(maxsize=4)
def _mel_filters(bins: int, n_mels: int, sample_rate: int) -> Tensor:
    """Triangles of equal area on Slaney's mel scale, `(n_mels, F)`; some are too narrow for a bin, and stay empty."""
    from torchaudio.functional import melscale_fbanks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the empty ones
        return melscale_fbanks(bins, 0.0, sample_rate / 2, n_mels, sample_rate, norm="slaney", mel_scale="slaney").T


BEYOND_SDR = ("log-WMSE", "STFT distance", "log-spectral distance", "bleedless", "fullness")


def beyond_sdr(mixture: Tensor, reference: Tensor, estimate: Tensor, sample_rate: int) -> dict[str, float]:
    """The scores of `BEYOND_SDR` of `(C, N)` waveforms; the log-spectral distance is in dB."""
    values = (
        log_wmse(mixture, reference, estimate, sample_rate),
        stft_distance(reference, estimate),
        log_spectral_distance(reference, estimate) if reference.any() else float("nan"),
        *bleedless_fullness(reference, estimate, sample_rate),
    )
    return dict(zip(BEYOND_SDR, values, strict=True))
