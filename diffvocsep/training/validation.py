"""Validation: the program's own separation of fixed dev clips, scored against the true vocals as waveforms.

It draws nothing from any stream that training draws from: the noise of a separation is a function of the seed and of
the place in the song.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from torch import Tensor, device, nn
from tqdm.auto import tqdm

from ..config import Config
from ..data import Track
from ..data.stems import fill_cache
from ..data.tracks import SIDES, to_channels
from ..evaluation.metrics import sdr
from ..separator import Separator
from ..util.errors import UserError


@dataclass
class Validation:
    """Global SDR of the vocals of each clip in dB, with the configured steps and with one, and the first separations:
    mixture, separated and true vocals, `(C, N)`."""

    scores: list[float] = field(default_factory=list)
    one_step: list[float] = field(default_factory=list)
    examples: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)


def median_sdr(scores: Sequence[float]) -> float:
    """The median in dB; a score that is no number is the worst, wherever it stands."""
    return median(-math.inf if math.isnan(score) else score for score in scores)


def dev_clips(tracks: list[Track], config: Config) -> list[tuple[Tensor, Tensor]]:
    """Fixed clips `(vocals, accompaniment)`, at most `val_seconds` from the middle of at most `val_batches` tracks.

    A clip in which nobody sings is left out: it has no SDR.

    Raises:
        UserError: no clip is left.
    """
    train, audio = config.train, config.audio
    count = min(train.val_batches, len(tracks))
    clips, tracks = [], [tracks[i * len(tracks) // count] for i in range(count)]
    fill_cache(tracks, audio.sample_rate)
    for track in tracks:
        seconds = min(train.val_seconds, track.seconds)
        start = (track.seconds - seconds) / 2
        vocals, accompaniment = (
            to_channels(track.read(side, start, seconds, audio.sample_rate), audio.channels) for side in SIDES
        )
        if vocals.any():
            clips.append((vocals, accompaniment))
    if not clips:
        raise UserError("no dev track has accompaniment and, in its middle, vocals; see data.dev_root")
    return clips


def ema_separator(model: nn.Module, ema: Mapping[str, Tensor], config: Config, host: device) -> Separator:
    """A separator with the EMA weights, in a copy of `model`: a new network would draw random numbers."""
    model = copy.deepcopy(model).to(host)
    model.load_state_dict(ema)
    return Separator(model, config, host)


def validate(
    separator: Separator, clips: list[tuple[Tensor, Tensor]], examples: int, stopped: Callable[[], bool]
) -> Validation | None:
    """Separate every clip as `inference.py` would, and once more with one step if the config asks for more steps.

    Args:
        examples: how many of the first separations are kept.
        stopped: asked before each clip; once it says True the rest is left out and the result is None.
    """
    rate, result = separator.config.audio.sample_rate, Validation()
    with tqdm(clips, desc="Validation", unit="clip", leave=False) as bar:
        for vocals, accompaniment in bar:
            if stopped():
                return None
            mixture = vocals + accompaniment
            estimate, _ = separator.separate(mixture, rate)
            result.scores.append(sdr(vocals, estimate))
            if separator.config.diffusion.ddim_steps == 1:
                result.one_step.append(result.scores[-1])
            else:
                result.one_step.append(sdr(vocals, separator.separate(mixture, rate, steps=1)[0]))
            if len(result.examples) < examples:
                result.examples.append((mixture, estimate, vocals))
            bar.set_postfix(sdr=f"{median_sdr(result.scores):.2f} dB")
    return result
