"""Synthetic songs made on the fly from a seed: a singing voice over an accompaniment, with both stems known exactly."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...util.errors import UserError
from .instruments import FAMILIES, play
from .score import Score, melody, random_score
from .tones import pan, reverb
from .voices import SINGERS, VOICES, sing

__all__ = ["FAMILIES", "VOICES", "Song", "make_song"]


@dataclass(frozen=True)
class Song:
    """Stems (2, N) float32 in [-1, 1]; the mixture is their sum. `voice` and `families` say who plays."""

    vocals: np.ndarray
    accompaniment: np.ndarray
    sample_rate: int
    voice: str
    families: tuple[str, ...]


def make_song(
    seed: int,
    index: int,
    seconds: float = 8.0,
    sample_rate: int = 44100,
    voices: Sequence[str] = VOICES,
    families: Sequence[str] = FAMILIES,
) -> Song:
    """Song number `index` of the collection `seed`, round(seconds * sample_rate) samples long.

    A pure function of its arguments: the same on every platform, up to the rounding of float32. One of `voices` sings
    and two to five of `families` play (all of them where fewer are given), so that a shorter list holds the others
    out. The ratio of vocals to accompaniment energy is drawn from N(-2.2 dB, 2.5 dB), cut at 6 dB either side.

    Raises UserError for an unknown or missing voice or family, and for a size that cannot be made.
    """
    voices, families = require_known("voice", voices, VOICES), require_known("family", families, FAMILIES)
    if seed < 0 or index < 0:
        raise UserError(f"A synthetic song needs seed and index of 0 or more, not seed {seed} and index {index}.")
    if seconds < 1 or sample_rate < 8000:
        raise UserError(
            f"A synthetic song needs at least 1 s at 8000 Hz or more, not {seconds:g} s at {sample_rate} Hz."
        )
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    length = round(seconds * sample_rate)
    score = random_score(rng, seconds)
    voice = str(rng.choice(voices))
    count = min(len(families), int(rng.integers(2, 6)))
    band = tuple(sorted(map(str, rng.choice(families, count, replace=False)), key=families.index))

    vocals = _vocals(rng, score, voice, length, sample_rate)
    accompaniment = np.zeros((2, length), np.float32)
    for family in band:
        low = int(np.clip(SINGERS[voice].low + rng.integers(-3, 8), 43, 67))
        accompaniment += play(rng, score, family, length, sample_rate, low)
    accompaniment = reverb(rng, accompaniment, rng.uniform(0.2, 0.8), rng.uniform(11.0, 21.0), sample_rate)
    accompaniment -= accompaniment.mean(axis=1, keepdims=True)  # a kick drum pushes more than it pulls

    level = -2.2 + np.clip(rng.normal(0.0, 2.5), -6.0, 6.0)
    vocals *= np.float32(10.0 ** (level / 20) * np.linalg.norm(accompaniment) / np.linalg.norm(vocals))
    peak = max(np.abs(stem).max() for stem in (vocals, accompaniment, vocals + accompaniment))
    gain = np.float32(rng.uniform(0.5, 0.99) / peak)  # one gain for both stems keeps their balance
    return Song(vocals * gain, accompaniment * gain, sample_rate, voice, band)


def _vocals(rng: np.random.Generator, score: Score, voice: str, length: int, sample_rate: int) -> np.ndarray:
    """The sung melody (2, length): usually one take near the centre, at times two takes spread apart."""
    singer = SINGERS[voice]
    phrases = melody(rng, score, singer.low, singer.high, activity=rng.uniform(0.65, 0.82))
    position = rng.uniform(-0.4, 0.4) if rng.random() < 0.4 else 0.0
    dry = pan(sing(rng, score, voice, phrases, length, sample_rate), position)
    if rng.random() < 0.2:
        late = rng.uniform(0.01, 0.03)
        double = [[note._replace(start=note.start + late) for note in phrase] for phrase in phrases]
        dry += pan(sing(rng, score, voice, double, length, sample_rate), -position + rng.uniform(-0.4, 0.4))
    return reverb(rng, dry, rng.uniform(0.2, 0.6), rng.uniform(11.0, 23.0), sample_rate)


def require_known(kind: str, names: Sequence[str], options: tuple[str, ...]) -> tuple[str, ...]:
    """The names without repeats, or a UserError for an empty list or a name that is not among the options."""
    if not names:
        raise UserError(f"The list of {kind} names is empty; give at least one of {', '.join(options)}.")
    for name in names:
        if name not in options:
            nearest = difflib.get_close_matches(name, options, n=1, cutoff=0.0)[0]
            raise UserError(f"Unknown {kind} '{name}'; did you mean '{nearest}'? Known: {', '.join(options)}.")
    return tuple(dict.fromkeys(names))
