"""From tracks to training segments: which voice is mixed over which music, at what level, and how both are altered.

Segment `index` is a function of (seed, index) alone: any number of workers, any number of processes and any resumed
run draw the same segments. `Segments.draw` makes the decisions, `render` carries them out, for one segment in a loader
process as for a batch on a GPU (device_cache.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..config import Config
from ..util.device import move
from ..util.errors import UserError
from ..util.rng import generator
from .augment import KNOTS, Room, augment, rotate_stereo, source_length
from .tracks import SIDES, Track, to_channels
from .voice_effects import VOICE_CHAIN, Effect, Limiter, Pitch, apply_effects

REMIX_DB = -4.0  # level of a voice over foreign music: that of the mixtures in MUSDB18, see docs/method.md
SECOND_DB = (-9.0, 0.0)  # level of a second voice beside the first
PITCH_PROBABILITY = 0.25  # share of the voices whose pitch data.pitch_semitones changes
TWIN_GAINS = (0.5, 2.0)  # -6 and +6 dB
NOISE_FLOOR = 1e-3  # a stem 60 dB below the other holds only noise, which must not be made louder
SET_POWER = 0.25  # 0: all sets equally often, 1: by their duration


@dataclass(frozen=True)
class Cut:
    """One side of one track: `samples` from `start` (s) on become a segment, altered."""

    track: int
    start: float
    samples: int
    gain: float  # factor, negative where the polarity is flipped
    equalizer_db: np.ndarray  # (9,), see `augment`
    swap: bool  # left and right
    turn: float  # of the stereo image, in radians
    room: Room | None
    effects: tuple[Effect, ...] = ()


@dataclass(frozen=True)
class Twin:
    """The same music under another voice: the segment's own vocals times `gain`, plus those of a `guest`. The default
    leaves the vocals as they are."""

    gain: float = 1.0
    guest: Cut | None = None


@dataclass(frozen=True)
class Draw:
    """All random choices for segment `index`.

    Attributes:
        source_rate: the lowest sample rate of its recordings, Hz, each times the speed and pitch at which it is played.
        level_db: the level, relative to the segment, of the song that it stands for.
        second: another voice beside `vocals`.
        twin: the same music under another voice, for `train.consistency_share`.
    """

    index: int
    vocals: Cut
    accompaniment: Cut
    source_rate: float
    level_db: float
    second: Cut | None = None
    limiter: Limiter | None = None
    twin: Twin = Twin()


def render(crops: Tensor, cuts: Sequence[Cut], length: int, config: Config) -> Tensor:
    """The sides `(B, C, length)` of segments from what was cut out for them, `(B, C, N)`, N at least their samples."""
    data, device = config.data, crops.device
    if data.speed_semitones or data.equalizer_db or data.reverb:
        gains_db = move(torch.from_numpy(np.array([cut.equalizer_db for cut in cuts], np.float32)), device)
        samples, rooms = [cut.samples for cut in cuts], [cut.room for cut in cuts]
        crops = augment(crops, samples, length, config.audio.sample_rate, gains_db, rooms)
    crops = crops[..., :length]
    crops = apply_effects(crops, [cut.effects for cut in cuts], config.audio.sample_rate)
    gains = move(torch.tensor([cut.gain for cut in cuts], dtype=torch.float32), device)
    swap = move(torch.tensor([cut.swap for cut in cuts]), device)[:, None, None]
    crops = crops * gains[:, None, None]
    crops = torch.where(swap, crops.flip(1), crops)
    if not any(cut.turn for cut in cuts):
        return crops
    return rotate_stereo(crops, move(torch.tensor([cut.turn for cut in cuts], dtype=torch.float32), device))


def limit(batch: dict[str, Tensor], limiters: Sequence[Limiter | None]) -> dict[str, Tensor]:
    """Segments whose mixtures have been through their limiters: both sides `(B, C, N)` with the gains of both."""
    limited = [i for i, limiter in enumerate(limiters) if limiter]
    if not limited:
        return batch
    rows = move(torch.tensor(limited), batch["vocals"].device)
    sides = {side: batch[side][rows] for side in SIDES}
    gains = Limiter.gains([limiters[i] for i in limited], sides["vocals"] + sides["accompaniment"])
    return batch | {side: batch[side].index_copy(0, rows, part * gains) for side, part in sides.items()}


def assemble(
    draws: Sequence[Draw], rendered: Callable[[str, Sequence[Cut]], Tensor], config: Config
) -> dict[str, Tensor]:
    """Both sides of segments, and with `train.consistency_share` their `twin_vocals`, `(B, C, N)` each.

    Args:
        rendered: what cuts of a side become, `(B, C, N)`, as `render` makes them; from the disk, or on a device.
    """
    batch = {side: rendered(side, [getattr(draw, side) for draw in draws]) for side in SIDES}
    batch["vocals"] = _joined(batch["vocals"], [draw.second for draw in draws], rendered)
    batch = limit(batch, [draw.limiter for draw in draws])
    if config.train.consistency_share:
        gains = torch.tensor([draw.twin.gain for draw in draws], dtype=batch["vocals"].dtype)
        twins = move(gains, batch["vocals"].device)[:, None, None] * batch["vocals"]
        batch["twin_vocals"] = _joined(twins, [draw.twin.guest for draw in draws], rendered)
    return batch


def _joined(vocals: Tensor, others: Sequence[Cut | None], rendered: Callable[[str, Sequence[Cut]], Tensor]) -> Tensor:
    """`vocals` `(B, C, N)` with other voices added, where there are any."""
    rows = [i for i, cut in enumerate(others) if cut]
    if not rows:
        return vocals
    added = rendered("vocals", [others[i] for i in rows])
    return vocals.index_add(0, move(torch.tensor(rows), vocals.device), added)


def scalars(draws: Sequence[Draw]) -> dict[str, Tensor]:
    """The numbers that go with the waveforms of a batch of segments, `(B,)` each."""
    return {
        "source_rate": torch.tensor([draw.source_rate for draw in draws], dtype=torch.float32),
        "level_db": torch.tensor([draw.level_db for draw in draws], dtype=torch.float32),
        "index": torch.tensor([draw.index for draw in draws]),
    }


class Segments(Dataset):
    """Training segments: `vocals`, `accompaniment` `(C, N)`, and `source_rate`, `level_db` and `index` as in `Draw`.

    With `train.consistency_share`, `twin_vocals` too: in that share of the segments another voice over the same
    accompaniment, in the others `vocals` once more.
    """

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
        """What chance decides about segment `index`.

        The order of the draws is part of the format: a resumed run depends on it. What is new draws last.
        """
        data, rng = self.config.data, generator(self.config.train.seed, "segments", index)
        singer, band, voice_db = self._pair(rng)
        crops = {track: self._crop(track, rng) for track in (singer, band)}
        vocals = self._cut(singer, crops[singer], voice_db + rng.uniform(-data.gain_db, data.gain_db), rng)
        accompaniment = self._cut(band, crops[band], rng.uniform(-data.gain_db, data.gain_db), rng)
        silent = rng.random() < data.silent_vocals
        level_db = rng.normal(0, data.level_db)
        sung = replace(vocals, effects=self._effects(rng))
        vocals = replace(sung, gain=0.0) if silent else sung
        second = self._second_voice(vocals, rng)
        limiter = Limiter.draw(rng) if data.limiter and rng.random() < data.limiter else None
        if data.silent_accompaniment and rng.random() < data.silent_accompaniment and not silent:
            accompaniment = replace(accompaniment, gain=0.0)
        twin = self._twin(index, sung, silent)
        sounding = [cut for cut in (vocals, accompaniment, second, twin.guest) if cut and cut.gain]
        source_rate = min(map(self._source_rate, sounding))
        return Draw(index, vocals, accompaniment, source_rate, level_db, second, limiter, twin)

    def _source_rate(self, cut: Cut) -> float:
        """The sample rate (Hz) of a recording, as its speed and its pitch move the band that it holds."""
        semitones = sum(effect.semitones for effect in cut.effects if isinstance(effect, Pitch))
        return self.tracks[cut.track].source_rate * cut.samples / self.length * 2 ** (semitones / 12)

    def _pair(self, rng: np.random.Generator) -> tuple[int, int, float]:
        """Whose voice, over whose music, and how much louder the voice is made, in dB."""
        singer = int(rng.choice(len(self.tracks), p=self.weights["vocals"]))
        remix = rng.random() < self.config.data.remix_probability
        if not remix and "accompaniment" in self.tracks[singer].stems:
            return singer, singer, 0.0
        band = int(rng.choice(len(self.tracks), p=self.weights["accompaniment"]))
        voice, music = self._loudness(singer, "vocals"), self._loudness(band, "accompaniment")
        audible = voice > NOISE_FLOOR * music and music > NOISE_FLOOR * voice
        return singer, band, REMIX_DB + 20 * np.log10(music / voice) if audible else 0.0

    def _crop(self, track: int, rng: np.random.Generator) -> tuple[float, int]:
        """Start (s) and length (samples) of what becomes a segment at a random speed."""
        semitones = self.config.data.speed_semitones
        samples = source_length(self.length, 2 ** (rng.uniform(-semitones, semitones) / 12))
        latest = self.tracks[track].seconds - samples / self.config.audio.sample_rate
        return float(rng.uniform(0, max(0.0, latest))), samples

    def _cut(self, track: int, crop: tuple[float, int], gain_db: float, rng: np.random.Generator) -> Cut:
        """How what was cut out is altered."""
        data, (start, samples) = self.config.data, crop
        equalizer_db = np.zeros(len(KNOTS))
        if samples != self.length or data.equalizer_db:
            equalizer_db = data.equalizer_db * rng.standard_normal(len(KNOTS))
        swap, flip = rng.random() < data.channel_swap, rng.random() < data.polarity_flip
        room = Room.draw(rng) if rng.random() < data.reverb else None
        turned = data.turn and self.config.audio.channels == 2 and rng.random() < data.turn
        angle = rng.uniform(-np.pi / 2, np.pi / 2) if turned else 0.0
        gain = 10 ** (gain_db / 20) * (-1 if flip else 1)
        return Cut(track, start, samples, gain, equalizer_db, bool(swap), angle, room)

    def _effects(self, rng: np.random.Generator) -> tuple[Effect, ...]:
        """What a voice goes through, in the order of a studio."""
        data, effects = self.config.data, []
        if data.pitch_semitones and rng.random() < PITCH_PROBABILITY:
            effects.append(Pitch(rng.uniform(-data.pitch_semitones, data.pitch_semitones)))
        for name, effect in VOICE_CHAIN.items():
            share = getattr(data, name)
            if share and rng.random() < share:
                effects.append(effect.draw(rng))
        return tuple(effects)

    def _second_voice(self, first: Cut, rng: np.random.Generator) -> Cut | None:
        """In `data.second_voice` of the segments a guest; where the first voice is silent, nobody sings."""
        share = self.config.data.second_voice
        return self._guest(first, rng) if share and rng.random() < share and first.gain else None

    def _twin(self, index: int, sung: Cut, silent: bool) -> Twin:
        """In `train.consistency_share` of the segments: nobody sings, or the same voice louder or softer, or a guest
        joins; where the segment itself is silent, the one who would have sung does."""
        seed, share = self.config.train.seed, self.config.train.consistency_share
        rng = generator(seed, "twins", index)
        if not (share and rng.random() < share):
            return Twin()
        if silent:
            return Twin(guest=sung)
        kind = rng.integers(3)
        if kind == 2 and (guest := self._guest(sung, rng)):
            return Twin(guest=guest)
        return Twin(gain=float(rng.choice(TWIN_GAINS)) if kind == 1 else 0.0)

    def _guest(self, first: Cut, rng: np.random.Generator) -> Cut | None:
        """Another voice that sings along, `SECOND_DB` louder than the first; None where it is silent."""
        track = int(rng.choice(len(self.tracks), p=self.weights["vocals"]))
        loudness, own = self._loudness(first.track, "vocals"), self._loudness(track, "vocals")
        if not own > 0:
            return None
        crop = self._crop(track, rng)
        gain_db = 20 * np.log10(abs(first.gain))
        if loudness > 0:
            gain_db += 20 * np.log10(loudness / own) + rng.uniform(*SECOND_DB)
        return replace(self._cut(track, crop, gain_db, rng), effects=self._effects(rng))

    def _loudness(self, track: int, side: str) -> float:
        return self.tracks[track].loudness(side, self.config.audio.sample_rate)

    def songs(self, index: int) -> tuple[Track, Track]:
        """Whose voice and whose music segment `index` is made of."""
        draw = self.draw(index)
        return self.tracks[draw.vocals.track], self.tracks[draw.accompaniment.track]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        draw = self.draw(index)
        batch = scalars([draw]) | assemble([draw], self._render, self.config)
        return {name: values[0] for name, values in batch.items()}

    def _render(self, side: str, cuts: Sequence[Cut]) -> Tensor:
        (cut,), audio = cuts, self.config.audio
        crop = self.tracks[cut.track].read(side, cut.start, cut.samples / audio.sample_rate, audio.sample_rate)
        return render(to_channels(crop, audio.channels)[None], cuts, self.length, self.config)


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
