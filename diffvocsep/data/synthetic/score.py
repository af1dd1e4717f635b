"""What a synthetic song plays: a random key, tempo and chord progression, and melodies that keep to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
}
# Scale degrees counted from 0, one chord per bar, repeated to the end of the song.
PROGRESSIONS = (
    (0, 4, 5, 3),
    (0, 5, 3, 4),
    (5, 3, 0, 4),
    (0, 3, 4, 3),
    (0, 3, 0, 4),
    (1, 4, 0, 0),
    (0, 2, 3, 4),
    (0, 6, 5, 6),
)


class Note(NamedTuple):
    """`start` and `duration` in s, `pitch` as a MIDI number, `velocity` from 0 to 1."""

    start: float
    duration: float
    pitch: int
    velocity: float


Phrase = list[Note]


@dataclass(frozen=True)
class Score:
    """The plan all players share. `beat` in s; `scale` and `chords` hold pitch classes, chords root first, one per bar;
    `tuning` is the offset of the whole song from A4 = 440 Hz, in semitones."""

    seconds: float
    beat: float
    beats_per_bar: int
    scale: tuple[int, ...]
    chords: tuple[tuple[int, ...], ...]
    tuning: float

    def bars(self) -> Iterator[tuple[float, tuple[int, ...]]]:
        """(start in s, chord) of each bar that begins before the song ends."""
        for bar in range(int(np.ceil(self.seconds / (self.beat * self.beats_per_bar)))):
            yield bar * self.beat * self.beats_per_bar, self.chords[bar % len(self.chords)]

    def chord_at(self, time: float) -> tuple[int, ...]:
        bar = int(time / (self.beat * self.beats_per_bar) + 1e-6)  # a note on the bar line is not in the bar before it
        return self.chords[bar % len(self.chords)]

    def frequency(self, pitch: np.ndarray | float) -> np.ndarray:
        """MIDI pitch -> Hz, equal temperament with this song's tuning."""
        return 440.0 * 2.0 ** ((np.asarray(pitch) + self.tuning - 69.0) / 12.0)


def random_score(rng: np.random.Generator, seconds: float) -> Score:
    """A key, a tempo of 70 to 140 BPM, three or four beats to the bar, and a progression of triads or sevenths."""
    tonic = rng.integers(12)
    scale = tuple(int(step + tonic) % 12 for step in SCALES[rng.choice(list(SCALES))])
    size = 4 if rng.random() < 0.3 else 3
    degrees = PROGRESSIONS[rng.integers(len(PROGRESSIONS))]
    chords = tuple(tuple(scale[(degree + 2 * i) % 7] for i in range(size)) for degree in degrees)
    return Score(
        seconds=seconds,
        beat=60.0 / rng.uniform(70.0, 140.0),
        beats_per_bar=3 if rng.random() < 0.2 else 4,
        scale=scale,
        chords=chords,
        tuning=rng.uniform(-0.3, 0.3),
    )


def voicing(chord: tuple[int, ...], low: int) -> list[int]:
    """The chord's pitch classes as MIDI pitches in the octave that starts at `low`, ascending."""
    return sorted(low + (pitch_class - low) % 12 for pitch_class in chord)


def melody(rng: np.random.Generator, score: Score, low: int, high: int, activity: float) -> list[Phrase]:
    """Phrases of 1.5 to 3.5 s between MIDI pitches `low` and `high`, sounding about `activity` (0 to 1) of the time.

    Everything falls on half beats. Notes on the beat are chord tones, the others scale tones; small steps are likely.
    """
    half = score.beat / 2
    end = int(score.seconds / half)
    pitch = (low + high) // 2
    clock = int(rng.integers(2)) if end > 8 else 0
    phrases = []
    while clock < end:
        length = max(2, round(rng.uniform(1.5, 3.5) / half))
        rest = max(1, round(length * (1.0 / activity - 1.0)))
        stop = min(clock + length, end)
        phrase = []
        while clock < stop:
            held = int(rng.choice((1, 2, 3, 4), p=(0.42, 0.36, 0.12, 0.1)))
            held = stop - clock if stop - clock - held < 2 else held  # a phrase ends on a long note
            pitch = _next_pitch(rng, score, clock * half, pitch, low, high, on_beat=clock % 2 == 0)
            phrase.append(Note(clock * half, held * half, pitch, rng.uniform(0.6, 1.0)))
            clock += held
        phrases.append(phrase)
        clock = stop + rest
    return phrases


def _next_pitch(
    rng: np.random.Generator, score: Score, time: float, previous: int, low: int, high: int, on_beat: bool
) -> int:
    allowed = score.chord_at(time) if on_beat else score.scale
    candidates = np.array([pitch for pitch in range(low, high + 1) if pitch % 12 in allowed])
    step = np.abs(candidates - previous)
    weight = np.exp(-step / 3.0 - np.abs(candidates - (low + high) / 2) / (high - low)) * np.where(step == 0, 0.4, 1.0)
    return int(rng.choice(candidates, p=weight / weight.sum()))
