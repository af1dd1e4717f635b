"""How far the counterfactuals of one song lie apart, per time and frequency.

K samples of the accompaniment differ as their vocals do, because each pair adds up to the same mixture: one spread
belongs to both. It says where the model is unsure, not whether it is right; whether the two go together is measured by
`evaluate.py --uncertainty`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .config import AudioConfig, Config
from .util.atomic import write_atomic
from .util.errors import UserError

LEAST_STEPS = 8  # with fewer, K samples hardly differ
CELL = (4, 2)  # STFT bins x frames that share a number: 43 Hz x 46 ms with the default STFT
ADVICE = f"--sampler ddpm --steps {LEAST_STEPS}"  # options of inference.py under which the samples differ


def require_samples(config: Config, advice: str = ADVICE) -> None:
    """Raises UserError where there is only one sample, or the samples hardly differ; `advice` names better settings."""
    settings = config.diffusion
    if settings.samples < 2:
        raise UserError("the uncertainty is the spread of several counterfactuals; give --samples K, at least 2")
    if settings.ddim_steps < LEAST_STEPS:
        raise UserError(
            f"with diffusion.ddim_steps = {settings.ddim_steps} the samples hardly differ, so their spread says "
            f"nothing; take at least {LEAST_STEPS} steps, such as {advice}"
        )


def samples_differ(config: Config) -> bool:
    """Whether the samples differ enough for their spread to be worth a look."""
    return config.diffusion.samples >= 2 and config.diffusion.ddim_steps >= LEAST_STEPS


def pool(power: Tensor) -> Tensor:
    """Power `(C, F, T)` -> its mean over channels and cells `(F', T')`."""
    return F.avg_pool2d(power.mean(0)[None], CELL, ceil_mode=True, count_include_pad=False)[0]


class Moments:
    """Mean and variance of draws that come one at a time (Welford 1962), shaped like `like`, which may be complex."""

    def __init__(self, like: Tensor) -> None:
        self.count = 0
        self.mean = torch.zeros_like(like)
        self._scatter = torch.zeros_like(like.real)  # sum of squared distances from the mean

    def add(self, draw: Tensor) -> None:
        self.count += 1
        step = draw - self.mean
        self.mean = self.mean + step / self.count
        if self.count > 1:  # one alone has no distance from itself
            self._scatter += (step * (draw - self.mean).conj()).real

    @property
    def variance(self) -> Tensor:
        """The unbiased one; 0 of a single draw."""
        return self._scatter / max(1, self.count - 1)


class Spread:
    """Numbers of a song, filled chunk by chunk while it is separated: `separator.separate(..., spread=Spread(audio))`.

    `values()` gives arrays `(F, T)` of amplitudes: `mixture`, `vocals` (the mean of the samples) and `spread` (the
    standard deviation of the samples around it), with `time` (s) and `frequency` (Hz) of the middles of their cells. An
    amplitude of 1 is that of white noise of variance 1.
    """

    def __init__(self, audio: AudioConfig) -> None:
        self.audio = audio
        self._parts: list[Tensor] = []

    def add(self, mixture: Tensor, vocals: Tensor, variance: Tensor) -> None:
        """The next frames of the song: STFT of the mixture and of the mean of the samples, complex `(C, F, T)`, and
        the variance of the samples, `(C, F, T)`."""
        cells = [pool(power) for power in (mixture.abs().square(), vocals.abs().square(), variance)]
        self._parts.append(torch.stack(cells).sqrt())

    def values(self) -> dict[str, np.ndarray]:
        cells = torch.cat(self._parts, dim=-1).numpy() if self._parts else np.zeros((3, 1, 1), np.float32)
        bins, frames = CELL
        frequency = (np.arange(cells.shape[1]) * bins + (bins - 1) / 2) * self.audio.sample_rate / self.audio.n_fft
        time = (np.arange(cells.shape[2]) * frames + (frames - 1) / 2) * self.audio.hop_length / self.audio.sample_rate
        return {
            "time": time.astype(np.float32),
            "frequency": frequency.astype(np.float32),
            **dict(zip(("mixture", "vocals", "spread"), cells, strict=True)),
        }


def save_spread(path: Path, values: Mapping[str, np.ndarray], config: Config) -> None:
    """Write the arrays of `Spread.values` and the settings that made them as a compressed `.npz`."""
    settings = config.diffusion
    facts = {"samples": settings.samples, "steps": settings.ddim_steps, "sampler": settings.sampler,
             "eta": settings.eta, "seed": config.train.seed}  # fmt: skip

    def write(part: Path) -> None:
        with open(part, "wb") as file:  # np.savez would add .npz to the name
            np.savez_compressed(file, **values, **facts)

    try:
        write_atomic(path, write)
    except OSError as error:
        raise UserError(f"the numbers '{path}' cannot be written ({error.strerror}); name another place") from None


def load_spread(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that `save_spread` wrote.

    Raises:
        UserError: no such file, or another kind of file.
    """
    try:
        with np.load(path) as file:
            return {name: file[name] for name in ("time", "frequency", "mixture", "vocals", "spread")}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"'{path}' is not a file that --uncertainty wrote ({error})") from None
