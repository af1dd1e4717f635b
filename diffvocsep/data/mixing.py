"""From tracks to training segments: which voice over which music, at what level, how altered.

Segment `index` is a function of (seed, index) alone: any number of workers, any number of processes and any resumed
run draw the same segments. `Segments.draw` makes the decisions, `render` carries them out, for one segment in a loader
process as for a batch on a GPU (device_cache.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..config import Config
from ..util.errors import UserError
from ..util.rng import generator
from .augment import KNOTS, Room, alter, source_length, turn
from .effects import Compressor, Doubling, Echo, Effect, Harmony, Limiter, Pitch, Saturation

SIDES = ("vocals", "accompaniment")
REMIX_DB = -4.0  # level of a voice over foreign music: that of the mixtures in MUSDB18, see docs/method.md
SECOND_DB = (-9.0, 0.0)  # level of a second voice beside the first
PITCHED = 0.25  # share of the voices whose pitch data.pitch_semitones changes
HISS = 1e-3  # a stem 60 dB below the other holds noise only, which is not made louder
SET_POWER = 0.25  # 0: all sets equally often, 1: by their duration


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


@dataclass(frozen=True)
class Cut:
    """One side of one track: `samples` from `start` (s) on become a segment, altered."""

    track: int
    start: float
    samples: int
    gain: float  # factor, negative where the polarity is flipped
    equalizer_db: np.ndarray  # (9,), see `alter`
    swap: bool  # left and right
    turn: float  # of the stereo image, in radians
    room: Room | None
    effects: tuple[Effect, ...] = ()


@dataclass(frozen=True)
class Draw:
    """All that is decided by chance about segment `index`. `source_rate` is in Hz; `level_db` is how much louder than
    the segment the song is that it pretends to come from; `second` is another voice beside `vocals`."""

    index: int
    vocals: Cut
    accompaniment: Cut
    source_rate: float
    level_db: float
    second: Cut | None = None
    limiter: Limiter | None = None

    def cuts(self) -> list[tuple[str, Cut]]:
        """What the segment is added up of, each with its side."""
        second = [("vocals", self.second)] if self.second else []
        return [("vocals", self.vocals), ("accompaniment", self.accompaniment), *second]


def render(crops: Tensor, cuts: Sequence[Cut], length: int, config: Config) -> Tensor:
    """The sides `(B, C, length)` of segments from what was cut out for them, `(B, C, N)`, N at least their samples."""
    data, device = config.data, crops.device
    if data.speed_semitones or data.equalizer_db or data.reverb:
        gains_db = torch.from_numpy(np.array([cut.equalizer_db for cut in cuts], np.float32)).to(device)
        samples, rooms = [cut.samples for cut in cuts], [cut.room for cut in cuts]
        crops = alter(crops, samples, length, config.audio.sample_rate, gains_db, rooms)
    crops = crops[..., :length]
    if any(cut.effects for cut in cuts):
        crops = torch.stack(
            [_affect(crop, cut, config.audio.sample_rate) for crop, cut in zip(crops, cuts, strict=True)]
        )
    gains = torch.tensor([cut.gain for cut in cuts], dtype=torch.float32).to(device)
    swap = torch.tensor([cut.swap for cut in cuts]).to(device)[:, None, None]
    crops = crops * gains[:, None, None]
    crops = torch.where(swap, crops.flip(1), crops)
    if not any(cut.turn for cut in cuts):
        return crops
    return turn(crops, torch.tensor([cut.turn for cut in cuts], dtype=torch.float32).to(device))


def _affect(waveform: Tensor, cut: Cut, sample_rate: int) -> Tensor:
    for effect in cut.effects:
        waveform = effect(waveform, sample_rate)
    return waveform


def limit(item: dict[str, Tensor], limiter: Limiter | None) -> dict[str, Tensor]:
    """A segment whose mixture has been through the limiter: each side `(C, N)` with the gain of both."""
    if limiter is None:
        return item
    gain = limiter.gain(item["vocals"] + item["accompaniment"])
    return item | {side: item[side] * gain for side in SIDES}


def describe(draws: Sequence[Draw]) -> dict[str, Tensor]:
    """The numbers of a batch of segments that go with its waveforms, `(B,)` each."""
    return {
        "source_rate": torch.tensor([draw.source_rate for draw in draws], dtype=torch.float32),
        "level_db": torch.tensor([draw.level_db for draw in draws], dtype=torch.float32),
        "index": torch.tensor([draw.index for draw in draws]),
    }


class Segments(Dataset):
    """Training segments: `vocals`, `accompaniment` `(C, N)`, and `source_rate`, `level_db` and `index` as in `Draw`."""

    def __init__(self, tracks: Sequence[Track], config: Config, size: int) -> None:
        self.tracks, self.config, self.size = tracks, config, size
        self.length = round(config.data.segment_seconds * config.audio.sample_rate)
        factors = config.data.set_weights if config.data.dataset == "stems" else {}
        self.weights = {side: _weights(tracks, side, factors) for side in SIDES}
        for side, weights in self.weights.items():
            if not weights.any():
                raise UserError(f"none of the {len(tracks)} training tracks has {side}; both sides are needed")

    def __len__(self) -> int:
        return self.size

    def draw(self, index: int) -> Draw:
        """What chance decides about segment `index`."""
        data, audio = self.config.data, self.config.audio
        rng = generator(self.config.train.seed, "segments", index)
        singer = band = int(rng.choice(len(self.tracks), p=self.weights["vocals"]))
        gain_db = 0.0
        remix = rng.random() < data.remix_probability
        if remix or "accompaniment" not in self.tracks[singer].stems:
            band = int(rng.choice(len(self.tracks), p=self.weights["accompaniment"]))
            voice = self.tracks[singer].loudness("vocals", audio.sample_rate)
            music = self.tracks[band].loudness("accompaniment", audio.sample_rate)
            if voice > HISS * music and music > HISS * voice:
                gain_db = REMIX_DB + 20 * np.log10(music / voice)
        crops = {i: _crop(self.tracks[i], self.length, data.speed_semitones, audio.sample_rate, rng)
                 for i in (singer, band)}  # fmt: skip

        def cut(track: int, gain_db: float) -> Cut:
            start, samples = crops[track]
            equalizer_db = np.zeros(len(KNOTS))
            if samples != self.length or data.equalizer_db:
                equalizer_db = data.equalizer_db * rng.standard_normal(len(KNOTS))
            swap, flip = rng.random() < data.channel_swap, rng.random() < data.polarity_flip
            room = Room.draw(rng) if rng.random() < data.reverb else None
            turned = data.turn and audio.channels == 2 and rng.random() < data.turn
            angle = rng.uniform(-np.pi / 2, np.pi / 2) if turned else 0.0
            gain = 10 ** (gain_db / 20) * (-1 if flip else 1)
            return Cut(track, start, samples, gain, equalizer_db, bool(swap), angle, room)

        def effects() -> tuple[Effect, ...]:
            found: list[Effect] = []
            if data.pitch_semitones and rng.random() < PITCHED:
                found.append(Pitch(rng.uniform(-data.pitch_semitones, data.pitch_semitones)))
            chain = ((data.compressor, Compressor), (data.saturation, Saturation), (data.harmony, Harmony),
                     (data.doubling, Doubling), (data.echo, Echo))  # fmt: skip
            return (*found, *(kind.draw(rng) for share, kind in chain if share and rng.random() < share))

        vocals = cut(singer, gain_db + rng.uniform(-data.gain_db, data.gain_db))
        accompaniment = cut(band, rng.uniform(-data.gain_db, data.gain_db))
        silent = rng.random() < data.silent_vocals
        if silent:
            vocals = replace(vocals, gain=0.0)
        level_db = rng.normal(0, data.level_db)
        # What follows draws last, so that without it a segment is what it has always been.
        vocals = replace(vocals, effects=effects())
        second = limiter = None
        if data.second_voice and rng.random() < data.second_voice and not silent:
            other = int(rng.choice(len(self.tracks), p=self.weights["vocals"]))
            loud, own = (self.tracks[i].loudness("vocals", audio.sample_rate) for i in (singer, other))
            if own > 0:
                crops[other] = _crop(self.tracks[other], self.length, data.speed_semitones, audio.sample_rate, rng)
                relative_db = 20 * np.log10(loud / own) + rng.uniform(*SECOND_DB) if loud > 0 else 0.0
                second = cut(other, 20 * np.log10(abs(vocals.gain)) + relative_db)
                second = replace(second, effects=effects())
        if data.limiter and rng.random() < data.limiter:
            limiter = Limiter.draw(rng)
        source_rate = min(self.tracks[i].source_rate * crops[i][1] / self.length for i in crops)
        return Draw(index, vocals, accompaniment, source_rate, level_db, second, limiter)

    def songs(self, index: int) -> tuple[Track, Track]:
        """Whose voice and whose music segment `index` is made of."""
        draw = self.draw(index)
        return self.tracks[draw.vocals.track], self.tracks[draw.accompaniment.track]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        audio, draw = self.config.audio, self.draw(index)
        item = {name: values[0] for name, values in describe([draw]).items()}
        for side, cut in draw.cuts():
            crop = self.tracks[cut.track].read(side, cut.start, cut.samples / audio.sample_rate, audio.sample_rate)
            part = render(to_channels(crop, audio.channels)[None], [cut], self.length, self.config)[0]
            item[side] = item[side] + part if side in item else part
        return limit(item, draw.limiter)


def _crop(track: Track, length: int, semitones: float, rate: int, rng: np.random.Generator) -> tuple[float, int]:
    """Start (s) and length (samples) of what becomes `length` samples at a random speed."""
    samples = source_length(length, 2 ** (rng.uniform(-semitones, semitones) / 12))
    return float(rng.uniform(0, max(0.0, track.seconds - samples / rate))), samples


def _weights(tracks: Sequence[Track], side: str, factors: Mapping[str, float]) -> np.ndarray:
    """How often each track is drawn: a set (folder of tracks) by its duration to the power of `SET_POWER` times its
    factor, and within a set the tracks by their duration.

    By duration alone, a large set would drown the others; equally often, a small one would be learnt by heart.
    """
    seconds = np.array([t.seconds if side in t.stems else 0.0 for t in tracks])
    groups = np.array([t.group for t in tracks])
    weights = np.zeros(len(tracks))
    names = sorted(set(groups))
    for unknown in factors.keys() - names:
        raise UserError(f"data.set_weights names '{unknown}', but the folders of songs are {', '.join(names)}")
    for group in names:
        members = groups == group
        if seconds[members].any():
            share = seconds[members].sum() ** SET_POWER * factors.get(group, 1.0)
            weights[members] = share * seconds[members] / seconds[members].sum()
    return weights / max(weights.sum(), 1e-9)
