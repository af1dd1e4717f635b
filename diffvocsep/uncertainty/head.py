"""How far the vocals may be wrong, bin by bin: a small head upon the trained network, whose weights stay as they are.

The real and the imaginary part of the error of a bin are each modelled as `scale` times a draw of Student's t. The
head learns the scale. A factor for each octave and level, fitted to songs that did not train it, lets the intervals
cover what they promise in the mean over these songs; for one further song nothing is guaranteed.
`scripts/fit_uncertainty.py` fits both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AudioConfig, Config, differences
from ..unet import Patches

HIDDEN = 8  # width of the hidden layer
FLOOR = 1e-4  # 80 dB below the song's level, magnitudes look alike
LOWEST_HZ, OCTAVES = 62.5, 7  # the first class ends at 125 Hz, the last has no end
LEVELS_DB = (-15.0, 0.0, 15.0)  # edges between the classes of level: dB of a bin of the mixture above the song's level
QUIET_DB = -30.0  # quieter bins of the mixture, some 60 dB below the loudest, are not what is fitted or judged


def octaves(bins: int, audio: AudioConfig) -> Tensor:
    """The class of each of the lowest `bins` frequencies, `(F,)`."""
    hertz = torch.arange(bins) * (audio.sample_rate / audio.n_fft)
    return (hertz / LOWEST_HZ).clamp_min(1).log2().floor().long().clamp_max(OCTAVES - 1)


def levels(mixture: Tensor, level: Tensor) -> Tensor:
    """The class of each bin of the mixture `(B, C, F, T)`, complex, in a song of that `level`, `(B, 1, 1, 1)`."""
    edges = torch.tensor([10 ** (db / 20) for db in LEVELS_DB], device=mixture.device)
    return torch.bucketize((mixture.abs() / level.clamp_min(1e-20)).contiguous(), edges)


class ScaleHead(nn.Module):
    """`head(features, mixture, vocals, level)` -> the log of the scale of each bin, `(B, C, F, T)`.

    It is fitted to separations under `config`; under other settings the errors are others: see `settings_not_fitted`.

    Attributes:
        log_factor: `(octaves, levels)`, added to what was learnt.
        freedom: degrees of freedom of Student's t.
        sdr: `(4,)`: offset and slope from the SDR that the scales imply to the one that a song has, in dB, and how far
            off that is in one song of ten, at the lower and at the upper end.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        model, self.audio = config.model, config.audio
        self.patches = Patches(model.patch, 1, 1)
        width = model.base_channels * model.channels_mult[0]
        self.context = nn.Conv2d(width, HIDDEN * math.prod(model.patch), 1)
        self.seen = nn.Conv2d(3, HIDDEN, 1, bias=False)
        self.out = nn.Conv2d(HIDDEN, 1, 1)
        self.register_buffer("log_factor", torch.zeros(OCTAVES, len(LEVELS_DB) + 1))
        self.register_buffer("freedom", torch.tensor(4.0))
        self.register_buffer("sdr", torch.tensor([0.0, 1.0, 0.0, 0.0]))

    def forward(self, features: Tensor, mixture: Tensor, vocals: Tensor, level: Tensor) -> Tensor:
        """
        Args:
            features: the input of the network's last layer, `(B, W, T', F')` in patches.
            mixture, vocals: STFT, complex `(B, C, F, T)`.
            level: of the song, `(B, 1, 1, 1)`.
        """
        batch, channels, bins, frames = mixture.shape
        level = level.clamp_min(1e-20)
        song, voice = mixture.mT / level, vocals.mT / level
        parts = ((x.real, x.imag) for x in (song, voice, song - voice))
        power = torch.stack([real * real + imag * imag for real, imag in parts], dim=2)  # quicker than magnitudes
        seen = (power + FLOOR**2).log().flatten(0, 1) / 2  # (B * C, 3, T, F)
        context = self.patches.unfold(self.context(features))[..., :frames, :bins]  # the same for all channels
        hidden = self.seen(seen).unflatten(0, (batch, channels)) + context[:, None]
        found = self.out(F.silu(hidden).flatten(0, 1)).unflatten(0, (batch, channels)).squeeze(2).mT
        factor = self.log_factor[octaves(bins, self.audio).to(found.device)[:, None], levels(mixture, level)]
        return found + factor + level.log()

    def settings_not_fitted(self, config: Config) -> list[str]:
        """The settings, `section.key`, that change the errors and differ between `config` and the config that the head
        was fitted under, which is that of its file."""
        changed = differences(self.config, config)
        return [key for key in changed if key.startswith("diffusion.") or key == "separation.subtract"]


@contextmanager
def record_features(network: nn.Module) -> Iterator[list[Tensor]]:
    """A list that holds the input of a UNet's last layer in its latest pass: the features of a `ScaleHead`."""
    features: list[Tensor] = []

    def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features[:] = inputs

    hook = network.head[-1].register_forward_pre_hook(record)
    try:
        yield features
    finally:
        hook.remove()
