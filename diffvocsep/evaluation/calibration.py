"""Calibration of the uncertainty: does an interval cover as much of the truth as it says, by octave and by level, and
does the predicted SDR tell good songs from bad ones?

Each clip is reduced to a histogram of its errors, in units of the scale that the head predicts without its factors.
All results are computed from these histograms, so factors can be fitted anew to any choice of songs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.special import beta
from scipy.stats import binom, spearmanr
from scipy.stats import t as students_t
from torch import Tensor

from ..audio import resample
from ..chunks import to_groups
from ..separator import Separator
from ..uncertainty.head import LEVELS_DB, LOWEST_HZ, OCTAVES, QUIET_DB, ScaleHead, levels, octaves
from ..uncertainty.song import COVERAGE, predict_sdr
from ..util.folders import readable
from .clips import Excerpt
from .parallel import parallel_map
from .report import new_figure, save
from .systems import Model

EDGES = np.linspace(-12, 12, 1201)  # of the histogram: logarithms of error / scale
MIDDLES = np.exp((EDGES[1:] + EDGES[:-1]) / 2)
CLASSES = (OCTAVES, len(LEVELS_DB) + 1)
FREEDOMS = np.geomspace(1.4, 20, 40)  # of Student's t, from which the best is chosen; near 1, draws have no mean
SDR_COVERAGE = 0.8  # coverage of the interval of an SDR
MIN_SHARE = 0.0015  # share of a song's bins that makes a class of it count


@dataclass(frozen=True)
class Errors:
    """The errors of a clip, or of all clips of a song.

    Attributes:
        counts: how many real and imaginary parts there are, by octave, level and size (error / scale), `(O, L, S)`.
        scales: the sum of their scales, likewise.
        power: energy of the scales by octave and level, `(O, L)`.
        signal: energy of the separated vocals.
        energies: of the true vocals and of their error, as waveforms.
    """

    song: str
    counts: np.ndarray
    scales: np.ndarray
    power: np.ndarray
    signal: float
    energies: tuple[float, float]

    @property
    def sdr(self) -> float:
        """The true SDR, in dB."""
        true, error = self.energies
        return float(10 * np.log10(true / max(error, 1e-12 * true)))

    def implied_sdr(self, log_factor: np.ndarray) -> float:
        """The SDR in dB if the scales were the errors."""
        return 10 * np.log10(self.signal / (self.power * np.exp(2 * log_factor)).sum())


@dataclass(frozen=True)
class Calibration:
    """What `ScaleHead` keeps beside its weights; see there."""

    log_factor: np.ndarray
    freedom: float
    line: tuple[float, float, float, float]

    @classmethod
    def from_head(cls, head: ScaleHead) -> Calibration:
        return cls(head.log_factor.cpu().double().numpy(), float(head.freedom), tuple(head.sdr.tolist()))


def measure(excerpts: Sequence[Excerpt], model: Model, jobs: int) -> list[Errors]:
    """Every clip in which somebody sings.

    Raises:
        UserError: the model has no head.
    """
    model.separator().uncertainty()
    found = parallel_map(partial(_clip, model=model), excerpts, jobs, "Uncertainty")
    return [one for one in found if one]


def _clip(excerpt: Excerpt, model: Model) -> Errors | None:
    clip = excerpt.read()
    if not clip.vocals.any():
        return None
    return errors(model.separator(), readable(excerpt.track.name), clip.mixture, clip.vocals, clip.sample_rate)


def errors(separator: Separator, song: str, mixture: Tensor, truth: Tensor, sample_rate: int) -> Errors:
    """Separate a mixture and compare with the true vocals, waveforms `(C, N)`."""
    uncertainty, frontend, audio = separator.uncertainty(), separator.frontend, separator.config.audio
    vocals, _ = separator.separate(mixture, sample_rate, uncertainty=uncertainty)
    scale = uncertainty.scale.float()
    _, bins, frames = scale.shape

    def stft(waveform: Tensor) -> Tensor:
        groups = to_groups(resample(waveform, sample_rate, audio.sample_rate), audio.channels)
        return frontend.modelled(groups)

    spectra = [stft(wave) for wave in (mixture, vocals, truth)]
    level = frontend.representation.level(frontend.representation.statistics(spectra[0]))
    frames = min(frames, spectra[0].shape[-1])  # resampling in blocks may end a sample later
    spectra = [x[:, :, :bins, :frames] for x in spectra]
    group = octaves(bins, audio)[:, None] * CLASSES[1] + levels(spectra[0], level)
    scale = scale.unflatten(0, spectra[0].shape[:2])[..., :frames]
    energies = tuple(float(x.double().square().sum()) for x in (truth, vocals - truth))
    raw = scale * torch.exp(-separator.head.log_factor.cpu().flatten()[group])
    return compare(song, *spectra, raw, group, level, energies)


def compare(
    song: str,
    mixture: Tensor,
    found: Tensor,
    true: Tensor,
    raw: Tensor,
    group: Tensor,
    level: Tensor,
    energies: tuple[float, float],
) -> Errors:
    """The `Errors` of separated vocals.

    Args:
        mixture, found, true: STFT of the mixture and of the separated and true vocals, complex `(B, C, F, T)`.
        raw: scales without factors, `(B, C, F, T)`.
        group: the number of each bin's class of octave and level, `(B, C, F, T)`.
        level: of the song, `(B, 1, 1, 1)`.
        energies: as in `Errors`.
    """
    judged = (mixture.abs() > level * 10 ** (QUIET_DB / 20)) & (raw > 0)
    size = torch.view_as_real(true - found).abs()[judged] / raw[judged][:, None]
    index = torch.bucketize(size.log(), torch.from_numpy(EDGES[1:-1]).float()) + group[judged][:, None] * len(MIDDLES)
    shape = (*CLASSES, len(MIDDLES))

    def add_up(places: Tensor, weights: Tensor | None, shape: tuple[int, ...]) -> np.ndarray:
        total = torch.bincount(places.flatten(), weights, minlength=int(np.prod(shape)))
        return total.double().numpy().reshape(shape)

    return Errors(
        song,
        add_up(index, None, shape),
        add_up(index, raw[judged].double()[:, None].expand(-1, 2).flatten(), shape),
        add_up(group, raw.double().square().flatten(), CLASSES),
        float(found.abs().square().double().sum()),
        energies,
    )


def fit(clips: Sequence[Errors]) -> Calibration:
    """Factors, shape and the line of the SDR from songs with known stems, each song counting once."""
    counts = by_song(clips)
    found = {freedom: _factors(counts, freedom) for freedom in FREEDOMS}
    freedom = min(found, key=lambda f: _coverage_error(counts, Calibration(found[f], f, (0, 1, 0, 0))))
    log_factor = found[freedom]
    songs = merge(clips)
    implied, true = (np.array(x) for x in zip(*((s.implied_sdr(log_factor), s.sdr) for s in songs), strict=True))
    return Calibration(log_factor, float(freedom), _line(implied, true))


def merge(clips: Sequence[Errors]) -> list[Errors]:
    """One for each song: its clips added up."""
    songs: dict[str, Errors] = {}
    for clip in clips:
        old = songs.get(clip.song)
        songs[clip.song] = clip if old is None else replace(
            old,
            **{name: getattr(old, name) + getattr(clip, name) for name in ("counts", "scales", "power", "signal")},
            energies=tuple(a + b for a, b in zip(old.energies, clip.energies, strict=True)),
        )  # fmt: skip
    return list(songs.values())


def by_song(clips: Sequence[Errors]) -> np.ndarray:
    """The counts of each song as shares of its own, `(songs, octaves, levels, sizes)`."""
    counts = np.stack([song.counts for song in merge(clips)])
    return counts / counts.sum((1, 2, 3), keepdims=True)


def _factors(counts: np.ndarray, freedom: float) -> np.ndarray:
    """The logarithms of the factors of the scales, `(octaves, levels)`, by which the intervals of `COVERAGE` cover what
    they promise, in the mean over the songs that have bins of that class. A class without bins gets the factor of all
    bins together."""
    share = counts.sum(-1, keepdims=True)
    equal = np.where(share > MIN_SHARE, counts / np.maximum(share, 1e-30), 0).sum(0)
    whole = counts.sum((0, 1, 2))
    wanted = np.log(students_t.ppf((1 + np.array(COVERAGE)) / 2, freedom))

    def factor(row: np.ndarray) -> float:
        cumulated = np.concatenate([[0], np.cumsum(row)]) / row.sum()
        return float((np.interp(COVERAGE, cumulated, EDGES) - wanted).mean())

    return np.array([[factor(row if row.sum() else whole) for row in line] for line in equal])


def _coverage_error(counts: np.ndarray, calibration: Calibration) -> float:
    return sum(abs(coverage_of(counts.sum(0), calibration, coverage) - coverage) for coverage in COVERAGE)


def coverage_of(counts: np.ndarray, calibration: Calibration, coverage: float) -> float:
    """The share of the truth that the intervals of that coverage hold, of `counts` `(octaves, levels, sizes)`."""
    width = np.log(students_t.ppf((1 + coverage) / 2, calibration.freedom)) + calibration.log_factor
    below = np.clip((width[..., None] - EDGES[:-1]) / (EDGES[1] - EDGES[0]), 0, 1)
    return float((counts * below).sum() / counts.sum())


def _line(implied: np.ndarray, true: np.ndarray) -> tuple[float, float, float, float]:
    """Offset and slope from the implied to the true SDR by least squares, and how far the true one lies below and above
    the line: the ends of the middle 80 % of what each song misses the line of the others by, with the rank of n + 1
    songs, since the next one is not among them (conformal prediction: Vovk et al. 2005)."""
    if len(true) < 3:
        return float((true - implied).mean()), 1.0, 0.0, 0.0
    design = np.stack([np.ones_like(implied), implied], 1)
    inverse = np.linalg.pinv(design)
    offset, slope = inverse @ true
    leverage = np.einsum("ij,ji->i", design, inverse)
    missed = (true - design @ (offset, slope)) / np.maximum(1 - leverage, 1e-3)  # left out one by one
    below = max(1, int((len(true) + 1) * (1 - SDR_COVERAGE) / 2))  # songs that lie as low as the lower end, or lower
    missed.sort()
    return float(offset), float(slope), float(missed[below - 1]), float(missed[-below])


def fit_without(clips: Sequence[Errors], song: str) -> Calibration:
    """A calibration fitted to all songs but `song`."""
    return fit([clip for clip in clips if clip.song != song])


def crps(clip: Errors, calibration: Calibration) -> tuple[float, float]:
    """Continuous ranked probability score of the clip, and the mean absolute error of the point estimate, which is the
    score of one who has no doubt: amplitudes. Of Student's t: Jordan et al. 2019, appendix A."""
    nu, factor = calibration.freedom, np.exp(calibration.log_factor)[..., None]
    z = MIDDLES / factor
    density = students_t.pdf(z, nu) * (nu + z**2) / (nu - 1)
    constant = 2 * np.sqrt(nu) / (nu - 1) * beta(0.5, nu - 0.5) / beta(0.5, nu / 2) ** 2
    score = z * (2 * students_t.cdf(z, nu) - 1) + 2 * density - constant
    return (clip.scales * factor * score).sum() / clip.counts.sum(), (clip.scales * MIDDLES).sum() / clip.counts.sum()


def rank_shares(counts: np.ndarray, calibration: Calibration, samples: int) -> np.ndarray:
    """How often so many of the `samples` draws lie below the truth, `(samples + 1,)`; where the truth is one more draw,
    all are equally frequent (Talagrand's rank histogram). The mean over all draws, so none is drawn."""
    below = students_t.cdf(MIDDLES / np.exp(calibration.log_factor)[..., None], calibration.freedom)
    ranks = [(counts * binom.pmf(rank, samples, below)).sum() for rank in range(samples + 1)]
    both = np.array(ranks) / counts.sum()
    return (both + both[::-1]) / 2  # an error is as often negative as positive


def predicted(clip: Errors, calibration: Calibration) -> tuple[float, float, float]:
    """The SDR that `Uncertainty.sdr` predicts for the clip, and the ends of its interval, in dB."""
    error = (clip.power * np.exp(2 * calibration.log_factor)).sum()
    return predict_sdr(clip.signal, error, list(calibration.line))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's; NaN of fewer than three."""
    return float(spearmanr(first, second).statistic) if len(first) > 2 else float("nan")


def coverage_table(clips: Sequence[Errors], used: Mapping[str, Calibration]) -> dict[str, list[float]]:
    """What the intervals of `COVERAGE` cover, over all bins, by octave and by level, each song counting once; and the
    share of the bins. `used` holds the calibration of each song, by its name."""
    counts = dict(zip(used, by_song(clips), strict=True))
    whole = np.ones(CLASSES)
    rows = {"all bins": whole}
    for octave in range(OCTAVES):
        rows[_span("Hz", LOWEST_HZ * 2.0 ** np.arange(1, OCTAVES), octave)] = np.eye(OCTAVES)[octave][:, None] * whole
    for level in range(CLASSES[1]):
        rows[_span("dB", LEVELS_DB, level, "+")] = np.eye(CLASSES[1])[level] * whole

    def row(chosen: np.ndarray) -> list[float]:
        own = {song: count * chosen[..., None] for song, count in counts.items()}
        own = {song: count for song, count in own.items() if count.sum() > MIN_SHARE}
        means = [np.mean([coverage_of(count, used[song], c) for song, count in own.items()]) for c in COVERAGE]
        return [*means, np.mean([count.sum() for count in own.values()])]

    return {name: row(chosen) for name, chosen in rows.items() if any((c * chosen[..., None]).sum() > MIN_SHARE
                                                                      for c in counts.values())}  # fmt: skip


def _span(unit: str, edges: Sequence[float], index: int, sign: str = "") -> str:
    ends = [f"{edge:{sign}.0f}" for edge in edges]
    if index == 0:
        return f"below {ends[0]} {unit}"
    return f"above {ends[-1]} {unit}" if index == len(ends) else f"{ends[index - 1]} to {ends[index]} {unit}"


def summary(clips: Sequence[Errors], used: Mapping[str, Calibration], samples: int) -> dict[str, float]:
    """The table of CRPS, ranks and predicted SDR; `used` as in `coverage_table`."""
    scores, errors = zip(*(crps(clip, used[clip.song]) for clip in clips), strict=True)
    ranks = np.mean([rank_shares(clip.counts, used[clip.song], samples) for clip in clips], axis=0)
    sdrs = np.array([[clip.sdr, *predicted(clip, used[clip.song])] for clip in clips])
    true, middle, low, high = sdrs.T
    honest = 100 * (samples - 1) / (samples + 1)
    return {
        "CRPS over the absolute error of the point estimate (no doubt: 1)": float(np.mean(np.divide(scores, errors))),
        f"truth between the smallest and the largest of {samples} draws, % (honest: {honest:.0f})": 100
        * float(ranks[1:-1].sum()),
        "rank correlation of predicted and true SDR": rank_correlation(middle, true),
        "predicted SDR is off by, dB (median)": float(np.median(np.abs(middle - true))),
        f"true SDR within its {100 * SDR_COVERAGE:.0f} % interval, % of songs": 100
        * float(((low <= true) & (true <= high)).mean()),
    }


def draw_calibration(
    path: Path, coverage: Mapping[str, list[float]], clips: Sequence[Errors], used: Mapping[str, Calibration]
) -> None:
    """Coverage against what it should be, and the predicted against the true SDR."""
    figure = new_figure(10, 4.4)
    left, right = figure.subplots(1, 2)
    nominal = 100 * np.array(COVERAGE)
    for name, row in coverage.items():
        whole = name == "all bins"
        left.plot(nominal, 100 * np.array(row[:-1]), marker="o", ms=3, label=name, lw=3 if whole else 1)
    left.plot([40, 100], [40, 100], color="black", ls="--", label="honest")
    left.set_xlabel("% that the interval says")
    left.set_ylabel("% that it covers")
    left.legend(fontsize=6)
    true, middle, low, high = np.array([[clip.sdr, *predicted(clip, used[clip.song])] for clip in clips]).T
    right.errorbar(middle, true, xerr=[middle - low, high - middle], fmt="o", ms=3, lw=0.5)
    right.plot(ends := [min(true.min(), low.min()), max(true.max(), high.max())], ends, color="black", ls="--")
    right.set_xlabel("predicted SDR and its interval, dB")
    right.set_ylabel("true SDR, dB")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save(figure, path)
