"""Synthetic songs as tracks for training, validation and tests: made when first read, then kept as 16 bit if wanted."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...config import Config
from ..tracks import SIDES
from .song import FAMILIES, VOICES, Song, make_song, require_known

SPLITS = {"train": 0, "dev": 1, "test": 2}  # seeds: no song is in two of them
DEV_AND_TEST_SONGS = 32  # songs of the dev and test splits


class SyntheticTrack:
    """Song `index` of a collection; for the attributes see `Track` in data/tracks.py."""

    group = "synthetic"
    stems = SIDES

    def __init__(
        self, seed: int, index: int, seconds: float, rate: int, voices: tuple, families: tuple, keep: bool
    ) -> None:
        self.name, self.seconds, self.source_rate = f"song {index}", seconds, rate
        self._arguments = (seed, index, seconds, rate, voices, families)
        self._keep, self._samples = keep, {}
        self._loudness: dict[str, float] = {}

    def read(self, side: str, start: float, seconds: float, sample_rate: int) -> Tensor:
        """Waveform `(2, round(seconds * sample_rate))`; the song is made at the rate of the model."""
        samples = self._samples or self._make()
        first, length = round(start * sample_rate), round(seconds * sample_rate)
        crop = torch.from_numpy(samples[side][:, first : first + length].astype(np.float32) / 32767)
        return torch.nn.functional.pad(crop, (0, length - crop.shape[-1]))

    def _make(self) -> dict[str, np.ndarray]:
        song: Song = make_song(*self._arguments)
        samples = {name: np.round(getattr(song, name) * 32767).astype(np.int16) for name in self.stems}
        if self._keep:
            self._samples = samples
        return samples

    def loudness(self, side: str, sample_rate: int) -> float:
        """RMS of one side."""
        if side not in self._loudness:
            power = self.read(side, 0, self.seconds, sample_rate).square().mean()
            self._loudness[side] = float(power) ** 0.5
        return self._loudness[side]


def synthetic_tracks(config: Config, split: str) -> list[SyntheticTrack]:
    """The songs of one split. What `data.held_out_*` names is left out of training only."""
    data = config.data
    seed = SPLITS[split] + (3 * config.train.seed if split == "train" else 0)  # dev and test songs stay the same
    voices, families = VOICES, FAMILIES
    if split == "train":
        require_known("voice", data.held_out_voices or VOICES, VOICES)
        require_known("family", data.held_out_families or FAMILIES, FAMILIES)
        voices = tuple(v for v in VOICES if v not in data.held_out_voices)
        families = tuple(f for f in FAMILIES if f not in data.held_out_families)
    songs = data.synthetic_songs if split == "train" else DEV_AND_TEST_SONGS
    rate, keep = config.audio.sample_rate, data.cache != "none"
    return [SyntheticTrack(seed, i, data.synthetic_seconds, rate, voices, families, keep) for i in range(songs)]
