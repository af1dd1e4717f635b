"""Quality against steps: samplers x steps x eta, K averaged samples."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..config import ignored_keys, load_config
from ..separator import Separator
from ..util.errors import UserError
from .clips import Excerpt
from .metrics import BEYOND_SDR, beyond_sdr, sdr, si_sdr
from .parallel import progress_bar
from .report import new_figure, save
from .systems import Model

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, order=True)
class Setting:
    """One way to sample; `evaluations` of the network per chunk."""

    sampler: str = "ddim"
    steps: int = 1
    eta: float = 0.0
    samples: int = 1

    @property
    def evaluations(self) -> int:
        return self.steps * self.samples

    def __str__(self) -> str:
        eta = f" eta {self.eta:g}" if self.eta else ""
        return f"{self.sampler}{eta}, {self.steps} steps, K = {self.samples}".replace(" 1 steps", " 1 step")

    def overrides(self) -> list[str]:
        return [f"diffusion.{key}={value}" for key, value in {
            "sampler": self.sampler, "ddim_steps": self.steps, "eta": self.eta,
            "samples": self.samples,
        }.items()]  # fmt: skip


DEFAULT_GRIDS = (
    "steps=1,2,4,8,16 sampler=ddim,dpmpp eta=0,0.5",
    "steps=4,16 sampler=ddpm",
    "steps=1,4 sampler=ddim samples=4",
)
SCORES = ("global SDR", "SI-SDR", *BEYOND_SDR)
TYPES = {"sampler": str, "steps": int, "eta": float, "samples": int}


def parse_grid(text: str) -> list[Setting]:
    """All combinations of `steps=1,4 sampler=ddim,dpmpp ...`, those that do the same only once.

    Raises:
        UserError: a name or a value that is not possible.
    """
    values = {}
    for word in text.split():
        name, _, given = word.partition("=")
        try:
            values[name] = [TYPES[name](value) for value in given.split(",")]
        except (KeyError, ValueError):
            raise UserError(
                f"'{word}' in --grid must be one of {', '.join(TYPES)} with values, such as steps=1,4,16"
            ) from None
    settings = (Setting(**dict(zip(values, chosen, strict=True))) for chosen in product(*values.values()))
    return list(dict.fromkeys(map(_simplest, settings)))


def _simplest(setting: Setting) -> Setting:
    """The simplest setting that does the same: what the config ignores has its default."""
    few = replace(setting, steps=min(setting.steps, 2))  # how many a model can take is not known yet
    ignored = ignored_keys(load_config(None, few.overrides()))
    return replace(setting, **{key.name: key.default for key in fields(Setting) if f"diffusion.{key.name}" in ignored})


@dataclass(frozen=True)
class Measured:
    """Scores of every clip, `(clips,)` by the names of `SCORES`, and seconds of computing per second of song."""

    setting: Setting
    scores: dict[str, np.ndarray]
    real_time: float

    @property
    def sdr(self) -> np.ndarray:
        return self.scores["global SDR"]


def sweep(excerpts: Sequence[Excerpt], model: Model, grids: Sequence[str]) -> Iterator[Measured]:
    """Measure each setting on the same clips, in this process alone, so that times can be compared."""
    settings = list(dict.fromkeys(setting for text in grids for setting in parse_grid(text)))
    separator = model.separator()
    separators = {setting: separator.configured(None, setting.overrides()) for setting in settings}
    for one in separators.values():
        one.settings()  # an impossible one is said before any work
    first = excerpts[0].read()
    separator.separate(first.mixture, first.sample_rate)  # the first call is slower than the others
    for setting, one in progress_bar(separators.items(), "Sweep", len(separators), "setting"):
        yield _measure(setting, one, excerpts)


def _measure(setting: Setting, separator: Separator, excerpts: Sequence[Excerpt]) -> Measured:
    scores, spent, length = [], 0.0, 0.0
    for clip in (excerpt.read() for excerpt in excerpts):  # read anew: a data set need not fit in memory
        if not clip.vocals.any():
            continue
        began = time.perf_counter()
        vocals, _ = separator.separate(clip.mixture, clip.sample_rate)
        spent += time.perf_counter() - began
        length += clip.mixture.shape[-1] / clip.sample_rate
        first = (sdr(clip.vocals, vocals), si_sdr(clip.vocals, vocals))
        rest = beyond_sdr(clip.mixture, clip.vocals, vocals, clip.sample_rate)
        scores.append([*first, *rest.values()])
    if not scores:
        raise UserError("nobody sings in these songs: there is nothing to score")
    return Measured(setting, dict(zip(SCORES, np.array(scores).T, strict=True)), spent / length)


def frontier(measured: Sequence[Measured]) -> list[Measured]:
    """Those that no other setting beats in SDR with as little time, fastest first."""
    best: list[Measured] = []
    for one in sorted(measured, key=lambda m: (m.real_time, -np.median(m.sdr))):
        if not best or np.median(one.sdr) > np.median(best[-1].sdr):
            best.append(one)
    return best


def draw_frontier(path: Path, measured: Sequence[Measured]) -> None:
    """SDR and log-spectral distance against time, a point per setting."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure = new_figure(12, 4.6)
    panels = figure.subplots(1, 2)
    for axis, (label, values) in zip(panels, {
        "global SDR of the vocals, dB (higher is better)": [np.median(m.sdr) for m in measured],
        "log-spectral distance, dB (lower is better)": [np.median(m.scores["log-spectral distance"]) for m in measured],
    }.items(), strict=True):  # fmt: skip
        kinds = dict.fromkeys((m.setting.sampler, m.setting.eta, m.setting.samples) for m in measured)
        points: list[tuple[float, float, int]] = []
        for sampler, eta, samples in kinds:
            chosen = [
                (m.real_time, value, m.setting.steps)
                for m, value in zip(measured, values, strict=True)
                if (m.setting.sampler, m.setting.eta, m.setting.samples) == (sampler, eta, samples)
            ]
            name = sampler + (f" eta {eta:g}" if eta else "")
            times, heights, steps = zip(*sorted(chosen), strict=True)
            axis.plot(times, heights, marker="o", ms=4, lw=1, label=name + (f", K = {samples}" if samples > 1 else ""))
            points += zip(times, heights, steps, strict=True)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
        _name_steps(axis, points)
        axis.set_xlabel("seconds of computing per second of song (numbers: steps)")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    best = frontier(measured)
    panels[0].plot([m.real_time for m in best], [np.median(m.sdr) for m in best], color="black", lw=3, alpha=0.2,
                   label="frontier")  # fmt: skip
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    save(figure, path)


def _name_steps(axis: Axes, points: Sequence[tuple[float, float, int]]) -> None:
    """The number of steps beside each point `(x, y, steps)`, once where several lie together."""
    axis.autoscale_view()
    named = np.empty((0, 2))
    for x, y, steps in points:
        here = axis.transData.transform((x, y))
        if not (np.abs(named - here) < (18, 10)).all(axis=1).any():  # pixels
            axis.annotate(str(steps), (x, y), textcoords="offset points", xytext=(3, 3), fontsize=7)
            named = np.vstack([named, here])
