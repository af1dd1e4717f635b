"""Calibration of the uncertainty: is the error large where K counterfactuals lie far apart, and does the truth lie
among them as one more draw would?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from ..audio import resample
from ..chunks import to_groups
from ..separator import Separator
from ..uncertainty import LEAST_STEPS, pool, require_samples
from ..util.errors import UserError
from .clips import Clip, Excerpt
from .parallel import parallel_map
from .report import new_figure, save
from .systems import Model

RANGE_DB = 60.0  # cells this far below the loudest are left out
BIN_DB = 5.0
FEWEST = 50  # cells of a level bin that give a correlation
FEWEST_SAMPLES = 16  # that a coverage can be read from
MOST = 480  # samples x s of a clip, whose STFTs fill about 2 GB


@dataclass(frozen=True)
class Calibration:
    """Of one clip: the numbers of the table, how often each rank of the truth occurs `(K + 1,)`, and RMS spread and
    RMS error of ten groups of cells of equal size, by spread, `(2, 10)`, over the RMS of the vocals."""

    numbers: dict[str, float]
    ranks: np.ndarray
    deciles: np.ndarray


def calibration(excerpts: Sequence[Excerpt], model: Model, samples: int, jobs: int) -> list[Calibration]:
    """Every clip in which somebody sings.

    Raises:
        UserError: fewer than two samples, too few steps for them to differ, or clips too long for the memory.
    """
    advice = f"diffusion.sampler=ddpm diffusion.ddim_steps={LEAST_STEPS}"
    require_samples(model.separator().settings(samples=samples), advice)
    longest = max(excerpt.seconds for excerpt in excerpts)
    if samples * longest > MOST:
        raise UserError(
            f"{samples} samples of {longest:.0f} s would fill the memory; cut the songs into clips with --seconds "
            f"{max(1, MOST // samples)}, or take fewer --samples"
        )
    found = parallel_map(partial(_song, model=model, samples=samples), excerpts, jobs, "Uncertainty")
    return [one for one in found if one]


def _song(excerpt: Excerpt, model: Model, samples: int) -> Calibration | None:
    clip = excerpt.read()
    return judge(*spectra(model.separator(), clip, samples)) if clip.vocals.any() else None


def spectra(separator: Separator, clip: Clip, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """STFTs at the model's rate, in the bins that it models: mixture and true vocals, complex `(C, F, T)`, and the
    vocals of each sample, `(K, C, F, T)`."""
    seed = separator.config.train.seed
    draws = [
        separator.separate(clip.mixture, clip.sample_rate, samples=1, seed=(seed + k) % 2**32)[0]
        for k in range(samples)
    ]

    def stft(waveform: Tensor) -> Tensor:
        audio = separator.config.audio
        groups = to_groups(resample(waveform, clip.sample_rate, audio.sample_rate), audio.channels)
        return separator.frontend.modelled(groups).flatten(0, 1)

    return stft(clip.mixture), stft(clip.vocals), torch.stack([stft(draw) for draw in draws])


def judge(mixture: Tensor, truth: Tensor, samples: Tensor) -> Calibration:
    """`mixture` and true vocals complex `(C, F, T)`, `samples` of the vocals complex `(K, C, F, T)`."""
    mean = samples.mean(0)
    variance = (samples - mean).abs().square().sum(0) / (len(samples) - 1)
    level = 10 * torch.log10(pool(mixture.abs().square()).clamp_min(1e-20))
    heard = level > level.max() - RANGE_DB
    spread = pool(variance).sqrt()[heard].numpy()
    error = pool((mean - truth).abs().square()).sqrt()[heard].numpy()
    vocals = 10 * torch.log10(pool(mean.abs().square()).clamp_min(1e-20))
    ranks = rank_counts(mixture, truth, samples)
    numbers = {
        "correlation of spread and error (Spearman), all cells": correlation(spread, error),
        f"... within {BIN_DB:g} dB of the mixture's level": within(level[heard].numpy(), spread, error),
        f"... within {BIN_DB:g} dB of the estimated vocals' level": within(vocals[heard].numpy(), spread, error),
        "RMS error over RMS spread, dB (honest: 0)": 10 * np.log10(
            (error**2).mean() / max((spread**2).mean() * (1 + 1 / len(samples)), 1e-20)
        ),
        **(coverage(ranks) if len(samples) >= FEWEST_SAMPLES else {}),
    }  # fmt: skip
    groups = np.array_split(np.argsort(spread), 10)
    scale = float(truth.abs().square().mean().sqrt()) or 1.0
    deciles = np.array([[np.sqrt((x[g] ** 2).mean()) / scale for g in groups] for x in (spread, error)])
    return Calibration(numbers, ranks, deciles)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, of `(N,)` and `(N,)`; NaN of fewer than three."""
    return float(spearmanr(first, second).statistic) if len(first) > 2 else float("nan")


def within(level: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """The mean correlation inside bins of `level` (dB), weighted by their cells: loud cells have large errors and large
    spreads alike, which by itself says nothing."""
    bins = np.floor(level / BIN_DB)
    found = [(correlation(first[own], second[own]), own.sum()) for own in (bins == b for b in np.unique(bins))
             if own.sum() >= FEWEST]  # fmt: skip
    if not found:
        return float("nan")
    values, cells = zip(*found, strict=True)
    return float(np.average(values, weights=cells))


def rank_counts(mixture: Tensor, truth: Tensor, samples: Tensor) -> np.ndarray:
    """How many of the samples lie below the truth, counted over real and imaginary parts of the loud bins: `(K + 1,)`.

    The truth is one more draw from the same distribution if all ranks are equally frequent (the probability integral
    transform of an ensemble; Talagrand's rank histogram).
    """
    level = mixture.abs()
    loud = level > level.max() * 10 ** (-RANGE_DB / 20)
    counts = np.zeros(len(samples) + 1, dtype=np.int64)
    for part in (torch.real, torch.imag):
        below = (part(samples) < part(truth)).sum(0)[loud]
        counts += torch.bincount(below, minlength=len(counts)).numpy()
    return counts


def coverage(ranks: np.ndarray) -> dict[str, float]:
    """The share of truths inside all samples, and inside their middle, with what it would be for an honest model."""
    count, shares = len(ranks), ranks / max(1, ranks.sum())
    quarter = count // 4
    inside = {"between the smallest and the largest sample": slice(1, -1)}
    if quarter > 1:
        inside["in the middle of the samples"] = slice(quarter, count - quarter)
    return {
        f"truth {where}, % (honest: {100 * len(shares[part]) / count:.0f})": 100 * float(shares[part].sum())
        for where, part in inside.items()
    }


def draw_calibration(path: Path, found: Sequence[Calibration]) -> None:
    """The rank histogram, and error against spread."""
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    shares = np.mean([one.ranks / max(1, one.ranks.sum()) for one in found], axis=0)
    left.bar(range(len(shares)), 100 * shares, color="#9ec1e6")
    left.axhline(100 / len(shares), color="black", ls="--", label="honest")
    left.locator_params(axis="x", integer=True)
    left.set_xlabel("samples below the truth")
    left.set_ylabel("% of bins")
    left.legend()
    spread, error = 20 * np.log10(np.maximum(np.median([one.deciles for one in found], axis=0), 1e-6))
    right.plot(spread, error, marker="o")
    ends = [min(spread.min(), error.min()), max(spread.max(), error.max())]
    right.plot(ends, ends, color="black", ls="--", label="honest")
    right.set_xlabel("RMS spread, dB relative to the vocals")
    right.set_ylabel("RMS error, dB relative to the vocals")
    right.grid(alpha=0.3)
    right.legend()
    save(figure, path)
