"""From tracks to training segments: which voice over which music, at what level, how altered.

Segment `index` is a function of (seed, index) alone: any number of workers, any number of processes and any resumed
run draw the same segments.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..config import Config
from ..errors import UserError
from ..streams import generator
from .augment import KNOTS, alter, source_length

REMIX_DB = -4.0  # level of a voice over foreign music: that of the mixtures in MUSDB18, see docs/method.md


class Track(Protocol):
    """What a source of stems offers, be it a folder or a synthesizer."""

    name: str
    group: str
    seconds: float
    source_rate: int
    stems: Collection[str]

    def read(self, side: str, start: float, seconds: float, sample_rate: int) -> Tensor: ...

    def loudness(self, side: str, sample_rate: int) -> float: ...


def to_channels(waveform: Tensor, channels: int) -> Tensor:
    """`(C, N)` -> `(channels, N)`: mono is doubled, stereo is averaged, of more channels the first are taken."""
    if len(waveform) == channels:
        return waveform
    if len(waveform) == 1:
        return waveform.expand(channels, -1)
    return waveform.mean(0, keepdim=True) if channels == 1 else waveform[:channels]


class Segments(Dataset):
    """Training segments: `vocals`, `accompaniment` `(C, N)`, `source_rate` (Hz), `index`, and `level_db`: how much
    louder than the segment the song is that it pretends to come from."""

    def __init__(self, tracks: Sequence[Track], config: Config, size: int) -> None:
        self.tracks, self.config, self.size = tracks, config, size
        self.weights = {side: _weights(tracks, side) for side in ("vocals", "accompaniment")}
        for side, weights in self.weights.items():
            if not weights.any():
                raise UserError(f"none of the {len(tracks)} training tracks has {side}; both sides are needed")

    def __len__(self) -> int:
        return self.size

    def songs(self, index: int) -> tuple[Track, Track, bool, np.random.Generator]:
        """Whose voice and whose music segment `index` is made of, whether as foreign to each other, and the generator
        for all that is drawn after."""
        rng = generator(self.config.train.seed, "segments", index)
        singer = self.tracks[rng.choice(len(self.tracks), p=self.weights["vocals"])]
        remix = rng.random() < self.config.data.remix_probability or "accompaniment" not in singer.stems
        if not remix:
            return singer, singer, False, rng
        return singer, self.tracks[rng.choice(len(self.tracks), p=self.weights["accompaniment"])], True, rng

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        data, audio = self.config.data, self.config.audio
        singer, band, remix, rng = self.songs(index)
        gain = 0.0
        if remix:
            voice, music = (
                singer.loudness("vocals", audio.sample_rate),
                band.loudness("accompaniment", audio.sample_rate),
            )
            if voice > 0 and music > 0:
                gain = REMIX_DB + 20 * np.log10(music / voice)
        length = round(data.segment_seconds * audio.sample_rate)
        crops = {track: _crop(track, length, data.speed_semitones, audio.sample_rate, rng) for track in (singer, band)}

        def cut(track: Track, side: str, gain_db: float) -> Tensor:
            start, samples = crops[track]
            waveform = track.read(side, start, samples / audio.sample_rate, audio.sample_rate)
            waveform = to_channels(waveform, audio.channels) * 10 ** (gain_db / 20)
            if samples != length or data.equalizer_db:
                gains = data.equalizer_db * rng.standard_normal(len(KNOTS))
                waveform = alter(waveform, length, audio.sample_rate, gains)
            if rng.random() < data.channel_swap:
                waveform = waveform.flip(0)
            return -waveform if rng.random() < data.polarity_flip else waveform

        vocals = cut(singer, "vocals", gain + rng.uniform(-data.gain_db, data.gain_db))
        accompaniment = cut(band, "accompaniment", rng.uniform(-data.gain_db, data.gain_db))
        if rng.random() < data.silent_vocals:
            vocals.zero_()
        return {
            "vocals": vocals,
            "accompaniment": accompaniment,
            "source_rate": torch.tensor(min(track.source_rate * crops[track][1] / length for track in crops)),
            "level_db": torch.tensor(rng.normal(0, data.level_db), dtype=torch.float32),
            "index": torch.tensor(index),
        }


def _crop(track: Track, length: int, semitones: float, rate: int, rng: np.random.Generator) -> tuple[float, int]:
    """Start (s) and length (samples) of what becomes `length` samples at a random speed."""
    samples = source_length(length, 2 ** (rng.uniform(-semitones, semitones) / 12))
    return float(rng.uniform(0, max(0.0, track.seconds - samples / rate))), samples


def _weights(tracks: Sequence[Track], side: str) -> np.ndarray:
    """How often each track is drawn: a set (folder of tracks) by the square root of its duration, its tracks by theirs.

    By duration alone, a large set would drown the others; equally often, a small one would be learnt by heart.
    """
    seconds = np.array([t.seconds if side in t.stems else 0.0 for t in tracks])
    groups = np.array([t.group for t in tracks])
    weights = np.zeros(len(tracks))
    for group in set(groups):
        members = groups == group
        if seconds[members].any():
            weights[members] = seconds[members] / seconds[members].sum() ** 0.5
    return weights / max(weights.sum(), 1e-9)
