"""What a perfect generator would score: the true accompaniment goes through each representation, and the vocals are
taken from the mixture in each way. Also masks made from the truth, the limit on the modelled band, and lossy files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..config import AudioConfig
from ..counterfactual import extend_band, subtract
from ..spectrogram import TRUSTED, Frontend
from .clips import Clip, Excerpt
from .metrics import sdr
from .parallel import parallel_map
from .systems import ratio_mask

SCALES = (10.0, 1.0, 0.1, 0.01)
LOSSY = "true mixture - true accompaniment (lossy files)"


def oracle(excerpts: Sequence[Excerpt], jobs: int) -> dict[str, list[float]]:
    """Row of the table -> global SDR of the vocals of every clip, dB (NaN where nobody sings)."""
    columns = parallel_map(_oracle_song, excerpts, jobs, "Oracle")
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name, float("nan")) for column in columns] for name in names}


def _oracle_song(excerpt: Excerpt) -> dict[str, float]:
    return ceilings(excerpt.read())


def ceilings(clip: Clip) -> dict[str, float]:
    """Row of the table -> global SDR of the vocals of one clip, dB."""
    base = AudioConfig(bandwidth=0, sample_rate=clip.sample_rate)
    stft = Frontend(base).stft
    mixture, rest, vocals = (stft(w[None]) for w in (clip.mixture, clip.accompaniment, clip.vocals))
    rows = {
        "silence": sdr(clip.vocals, torch.zeros_like(clip.vocals)),
        "mixture": sdr(clip.vocals, clip.mixture),
    }
    for name, spectrum in _spectra(base, mixture, rest, vocals):
        rows[name] = sdr(clip.vocals, stft.inverse(spectrum, clip.vocals.shape[-1])[0])
    if clip.own_mixture:
        rows[LOSSY] = sdr(clip.vocals, clip.mixture - clip.accompaniment)
    return rows


def _spectra(base: AudioConfig, mixture: Tensor, rest: Tensor, vocals: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Name and vocals' STFT, complex `(1, C, F, T)`, of everything that is compared."""
    variants = {"complex abs(X)^0.5": base}
    for scale in SCALES:
        variants[f"log1p({scale:g} abs(X))"] = replace(base, representation="magnitude", log1p_scale=scale)
    for name, audio in variants.items():
        representation = Frontend(audio).representation
        statistics = representation.statistics(mixture)
        x_mixture, x_0 = (representation.encode(x, statistics) for x in (mixture, rest))
        for how in ("normalized", "magnitude", "mask", "complex"):
            if how != "normalized" and audio.representation == "magnitude" and audio.log1p_scale != 1.0:
                continue  # decoded, the scale is gone
            yield f"{name}, subtract {how}", subtract(how, mixture, x_mixture, x_0, statistics, representation)
    yield "ideal ratio mask", ratio_mask(mixture, vocals, rest)
    cosine = (vocals * mixture.conj()).real / mixture.abs().square().clamp_min(1e-30)
    yield "truncated phase-sensitive mask", mixture * cosine.clamp(0, 1)
    limit = AudioConfig().bandwidth
    bins = min(Frontend(replace(base, bandwidth=limit)).bins, int(TRUSTED * base.n_fft))
    band = (mixture - rest)[:, :, :bins]
    above = torch.zeros_like(mixture[:, :, bins:])
    carried = extend_band(band, mixture, bins, base.sample_rate, base.hop_length)
    yield f"complex, bandwidth {limit:g} Hz (gain carried upward)", carried
    yield f"complex, bandwidth {limit:g} Hz (no vocals above)", torch.cat([band, above], dim=-2)
