"""Scores of the songs that decide, and how far two of them lie apart: what the comparisons here share."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import numpy as np
import torch
from tqdm.auto import tqdm

from diffvocsep.config import Config
from diffvocsep.evaluation.clips import Clip, find_excerpts
from diffvocsep.evaluation.metrics import sdr
from diffvocsep.evaluation.report import paired
from diffvocsep.separator import Separator
from diffvocsep.unet import make_network

LONG = 60.0  # s: of longer songs only some of the clips are scored


def dev_clips(root: Path, seconds: float, every: int) -> list[Clip]:
    """The songs below `root` in clips of `seconds`, of long ones every n-th; those without vocals have no score."""
    excerpts = find_excerpts("stems", root, seconds)
    short, long = ([e for e in excerpts if (e.track.seconds > LONG) == so] for so in (False, True))
    return [clip for clip in (e.read() for e in short + long[::every]) if clip.vocals.any()]


def score(separator: Separator, clips: list[Clip]) -> dict[str, float]:
    """Global SDR of the vocals of each clip, in dB."""
    return {c.name: sdr(c.vocals, separator.separate(c.mixture, c.sample_rate)[0]) for c in tqdm(clips, leave=False)}


def references(config: Config, clips: list[Clip]) -> dict[str, dict[str, float]]:
    """Scores of those who have learnt nothing."""
    torch.manual_seed(0)
    return {
        "silence": {c.name: sdr(c.vocals, torch.zeros_like(c.vocals)) for c in clips},
        "mixture": {c.name: sdr(c.vocals, c.mixture) for c in clips},
        "untrained network": score(Separator(make_network(config), config), clips),
    }


def set_of(name: str) -> str:
    """The set (folder of songs) of the clip `name`."""
    return name.rpartition("/")[0]


def set_means(scores: dict[str, float]) -> list[float]:
    """Mean score of each set, the sets in alphabetical order."""
    return [mean(scores[clip] for clip in scores if set_of(clip) == one) for one in sorted(set(map(set_of, scores)))]


def cells(scores: dict[str, float], base: dict[str, float] | None = None) -> list[str]:
    """Two cells of a table for each set of songs: its mean, and how far that lies from `base`, clip by clip; `-` for
    `base` itself, and nothing where there is none."""
    found = []
    for one, value in zip(sorted(set(map(set_of, scores))), set_means(scores), strict=True):
        against = "" if base is None else "-"
        if base is not None and scores is not base:
            against = ", ".join(paired(np.array([scores[c] - base[c] for c in base if set_of(c) == one])))
        found += [f"{value:.2f}", against]
    return found


def heads(scores: dict[str, float], base: str) -> list[str]:
    """What stands above these cells; `base` is what the others are held against."""
    return [head for one in sorted(set(map(set_of, scores))) for head in (one, f"against {base} (95 %)")]
