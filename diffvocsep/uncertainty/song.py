"""How far the vocals of one song may be wrong: the numbers that `--uncertainty` writes."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from ..config import AudioConfig
from ..util.atomic import write_atomic
from ..util.errors import UserError
from .head import ScaleHead

COVERAGE = (0.5, 0.8, 0.9)  # of the intervals that are written out
ARRAYS = ("time", "frequency", "scale", "coverage", "half_width", "sdr")


class Uncertainty:
    """Filled chunk by chunk while a song is separated: `separator.separate(..., uncertainty=separator.uncertainty())`.

    An amplitude of 1 is that of white noise of variance 1.

    Attributes:
        not_fitted: the settings, `section.key`, that the head was not fitted to: where there are any, it may mislead.
    """

    def __init__(self, head: ScaleHead, audio: AudioConfig, not_fitted: Sequence[str] = ()) -> None:
        self.not_fitted = list(not_fitted)
        self.audio, self.freedom, self._line = audio, float(head.freedom), head.sdr.tolist()
        self._parts: list[Tensor] = []
        self._signal = self._error = 0.0

    def add(self, vocals: Tensor, scale: Tensor) -> None:
        """The next frames of the song: STFT of the vocals, complex `(C, F, T)`, and the scale of their error."""
        self._signal += float(torch.linalg.vector_norm(torch.view_as_real(vocals))) ** 2  # makes no copy of the squares
        self._error += float(torch.linalg.vector_norm(scale)) ** 2
        self._parts.append(scale)

    @property
    def scale(self) -> Tensor:
        """The scale of the error of each bin, an amplitude, `(C, F, T)`."""
        return torch.cat(self._parts, dim=-1) if self._parts else torch.zeros(1, 1, 1)

    def half_width(self, coverage: float) -> float:
        """How many scales to each side of what was found the real part of the truth lies with that probability, and the
        imaginary part likewise: a quantile of Student's t (`scipy.stats` takes a second to import)."""
        return float(stdtrit(self.freedom, (1 + coverage) / 2))

    def sdr(self) -> tuple[float, float, float]:
        """The global SDR that the vocals probably have, in dB, and the ends of its 80 % interval; NaN for a song
        without vocals."""
        return predict_sdr(self._signal, self._error, self._line)

    def values(self) -> dict[str, np.ndarray]:
        """The arrays of the file."""
        scale = self.scale.numpy()
        _, bins, frames = scale.shape
        time = np.arange(frames) * self.audio.hop_length / self.audio.sample_rate
        frequency = np.arange(bins) * self.audio.sample_rate / self.audio.n_fft
        widths = [self.half_width(coverage) for coverage in COVERAGE]
        numbers = (time, frequency, scale, np.array(COVERAGE), np.array(widths), np.array(self.sdr()))
        return dict(zip(ARRAYS, numbers, strict=True))


def predict_sdr(signal: float, error: float, line: list[float]) -> tuple[float, float, float]:
    """A song's SDR and the ends of its interval in dB, from the energies of vocals and scales; `line` as
    `ScaleHead.sdr`."""
    if not (signal > 0 and error > 0):
        return (float("nan"),) * 3
    offset, slope, low, high = line
    middle = offset + slope * 10 * np.log10(signal / error)
    return middle, middle + low, middle + high


def save_uncertainty(path: Path, values: Mapping[str, np.ndarray]) -> None:
    """Write the arrays of `Uncertainty.values` as a compressed `.npz`."""

    def write(part: Path) -> None:
        with open(part, "wb") as file:  # np.savez would add .npz to the name
            np.savez_compressed(file, **values)

    try:
        write_atomic(path, write)
    except OSError as error:
        raise UserError(f"the numbers '{path}' cannot be written ({error.strerror}); name another place") from None


def load_uncertainty(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that `save_uncertainty` wrote.

    Raises:
        UserError: no such file, or another kind of file.
    """
    try:
        with np.load(path) as file:
            return {name: file[name] for name in ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"'{path}' is not a file that --uncertainty wrote ({error})") from None
