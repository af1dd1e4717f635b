"""Who separates: nobody, an oracle that knows the truth, the network before training, and the model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import load_model
from ..config import AudioConfig
from ..separator import Separator
from ..spectrogram import Frontend
from ..unet import make_network
from ..util.device import resolve_device
from ..util.folders import readable
from .clips import Clip

SILENCE, MIXTURE, UNTRAINED = "silence", "mixture", "untrained network"
RATIO_MASK, TRUE_ACCOMPANIMENT = "ideal ratio mask", "true accompaniment"
CEILINGS = (RATIO_MASK, TRUE_ACCOMPANIMENT)


@dataclass(frozen=True)
class Model:
    """A checkpoint, where it computes, and settings to change; loaded when first used, once in every process."""

    path: Path
    device: str = "auto"
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return readable(self.path.as_posix())

    def separator(self) -> Separator:
        return _trained(self)

    def fingerprint(self) -> str:
        """Of its weights and settings."""
        digest = hashlib.sha256(self.path.read_bytes())
        return f"{digest.hexdigest()} {sorted(self.overrides)}"


@lru_cache(maxsize=2)
def _trained(model: Model) -> Separator:
    return Separator.from_checkpoint(model.path, model.device).configured(None, model.overrides)


@lru_cache(maxsize=2)
def _untrained(model: Model) -> Separator:
    _, config = load_model(model.path)
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        network = make_network(config)
    return Separator(network, config, resolve_device(model.device)).configured(None, model.overrides)


def estimate(system: str, clip: Clip, model: Model | None = None) -> tuple[Tensor, Tensor]:
    """Vocals and accompaniment `(C, N)` as `system` gives them; a name that is none of the above is the model.

    `silence` and `mixture` stand for both sides. `true accompaniment` takes it from the mixture: where the mixture is
    a file of its own, what lossy coding lets anybody reach.
    """
    if system == SILENCE:
        return torch.zeros_like(clip.mixture), torch.zeros_like(clip.mixture)
    if system == MIXTURE:
        return clip.mixture, clip.mixture
    if system == TRUE_ACCOMPANIMENT:
        return clip.mixture - clip.accompaniment, clip.mixture - clip.vocals
    if system == RATIO_MASK:
        stft = Frontend(AudioConfig()).stft
        spectra = (stft(wave[None]) for wave in (clip.mixture, clip.vocals, clip.accompaniment))
        vocals = stft.inverse(ratio_mask(*spectra), clip.mixture.shape[-1])[0]
        return vocals, clip.mixture - vocals
    separator = _untrained(model) if system == UNTRAINED else model.separator()
    return separator.separate(clip.mixture, clip.sample_rate)


def ratio_mask(mixture: Tensor, vocals: Tensor, accompaniment: Tensor) -> Tensor:
    """The ideal ratio mask |V|^2 / (|V|^2 + |A|^2) on the mixture's STFT, complex `(B, C, F, T)`."""
    power, rest = vocals.abs().square(), accompaniment.abs().square()
    return mixture * power / (power + rest).clamp_min(1e-30)
