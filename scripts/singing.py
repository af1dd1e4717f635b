"""Melodies that an instrument plays as a voice sings them: in breaths, with slides, late vibrato and swells."""

from __future__ import annotations

import math
from random import Random
from typing import NamedTuple

from scripts.midi import TICKS, Song

BEATS = 4  # quarter notes a bar
BEND_RANGE = 12  # semitones that the lead's pitch wheel reaches to each side
STEP = 0.02  # s between two moves of the lead's pitch wheel
VOLUME, EXPRESSION, PAN, REVERB, CHORUS = 7, 11, 10, 91, 93  # controllers of General MIDI


class Lead(NamedTuple):
    """Who leads: General MIDI programs, one a desk, the first with the melody; its range of MIDI pitches; how often a
    note begins with a slide from the one before, and how often a long one has vibrato (probabilities)."""

    programs: tuple[int, ...]
    low: int
    high: int
    slide: float
    vibrato: float


class Note(NamedTuple):
    """Of a melody: start and length in quarter notes, MIDI pitch, and whether the next follows without a gap."""

    start: float
    length: float
    pitch: int
    joined: bool


class Arrangement(Song):
    """A song whose moments lie on whole ticks, so that of what falls on one tick, notes that end come first."""

    def add(self, moment: float, kind: str, **fields: int) -> None:
        super().add(max(0, round(moment * TICKS)) / TICKS, kind, **fields)

    def control(self, channel: int, moment: float, number: int, value: float) -> None:
        self.add(moment, "control_change", channel=channel, control=number, value=max(0, min(127, int(value))))

    def bend(self, channel: int, moment: float, semitones: float) -> None:
        wheel = max(0, min(16383, round(8192 + semitones / BEND_RANGE * 8191)))
        self.add(moment, "pitchwheel", channel=channel, pitch=wheel - 8192)

    def instrument(self, channel: int, program: int, volume: int, pan: int, reverb: int) -> None:
        self.add(0, "program_change", channel=channel, program=program)
        for number, value in ((VOLUME, volume), (PAN, pan), (REVERB, reverb), (CHORUS, 10)):
            self.control(channel, 0, number, value)


def motif(rng: Random, beats: int, density: float) -> list[tuple[float, float, int]]:
    """(start and length in quarter notes, steps of the scale from the note before), with a breath at the end."""
    found, start, end = [], rng.choice([0, 0, 0.5, 1]), beats - rng.choice([0.5, 1, 1.5])
    while start < end:
        weights = [density, 3 * density, 1, 3, 2, 2, 0.8, 0.5]
        length = min(rng.choices([0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4], weights)[0], end - start)
        step = rng.choices([-3, -2, -1, 0, 1, 2, 3, 4], [0.5, 2, 4, 1.2, 4, 2, 1, 0.5])[0]
        found.append((start, length, step))
        start += length
    return found


def melody(rng: Random, lead: Lead, pitches: set[int], bars: int, density: float) -> list[Note]:
    """Phrases of two or four bars in the range of the lead; about half of them repeat the motif before, moved. A higher
    density has more short notes."""
    tones = [pitch for pitch in range(lead.low, lead.high + 1) if pitch % 12 in pitches]
    middle = len(tones) // 2 + rng.randint(-2, 2)
    notes, bar, phrase = [], 0, None
    while bar < bars:
        span = rng.choice([2, 2, 4])
        if rng.random() < 0.12:  # a rest
            bar += 1
            continue
        shift = 0
        if phrase is None or rng.random() < 0.55:
            phrase = motif(rng, span * BEATS, density)
        else:
            shift = rng.choice([-2, -1, 0, 1, 2])
        place = middle + shift + rng.randint(-3, 3)
        for i, (start, length, step) in enumerate(phrase):
            place = max(0, min(len(tones) - 1, place + step))
            if abs(place - middle) > 7:
                place += 2 if place < middle else -2
            place = max(0, min(len(tones) - 1, place))
            if bar * BEATS + start + length <= bars * BEATS:
                joined = i + 1 < len(phrase) and rng.random() < 0.7
                notes.append(Note(bar * BEATS + start, length, tones[place], joined))
        bar += span
    return notes


class Gesture:
    """How one note of `seconds` s is sung: a slide or scoop into it, late vibrato, a fall at its end, a swell.

    Args:
        before: the pitch to slide from, None after a breath.
    """

    def __init__(self, rng: Random, lead: Lead, note: Note, before: int | None, seconds: float) -> None:
        self.seconds, self.offset, self.glide = seconds, 0.0, 0.0  # semitones, s
        if before is not None and abs(before - note.pitch) <= 9 and rng.random() < lead.slide:
            self.offset, self.glide = float(before - note.pitch), rng.uniform(0.05, 0.22)
        elif rng.random() < 0.3:
            self.offset = rng.choice([-1, -1, -2, -0.5, 0.5]) * rng.uniform(0.5, 1.2)
            self.glide = rng.uniform(0.04, 0.16)
        self.rate, self.depth = rng.uniform(4.5, 7), rng.uniform(0.1, 0.5)  # Hz, semitones
        self.vibrato = rng.random() < lead.vibrato and seconds > 0.35
        self.delay = rng.uniform(0.1, 0.35)
        self.fall = -rng.uniform(1, 4) if not note.joined and rng.random() < 0.15 else 0.0
        self.shape = rng.choice(["swell", "fade", "flat", "both"])
        self.detune = rng.gauss(0, 0.06)

    def bend(self, t: float) -> float:
        """Semitones above the pitch, `t` s after the beginning."""
        bend = self.detune + self.offset * max(0.0, 1 - t / self.glide) if self.glide else self.detune
        if self.vibrato and t > self.delay:
            late = t - self.delay
            bend += self.depth * min(1, late / 0.3) * math.sin(2 * math.pi * self.rate * late)
        if self.fall and t > self.seconds - 0.2:
            bend += self.fall * (t - self.seconds + 0.2) / 0.2
        return bend

    def level(self, t: float) -> float:
        """Loudness, 0 to 1."""
        x = t / max(self.seconds, STEP)
        if self.shape == "swell":
            return 0.6 + 0.4 * min(1, 1.6 * x)
        if self.shape == "fade":
            return 1 - 0.5 * x
        return 0.9 if self.shape == "flat" else 0.55 + 0.45 * math.sin(math.pi * x)


def sing(song: Arrangement, rng: Random, channel: int, lead: Lead, notes: list[Note], loose: int) -> None:
    """Play a melody as a voice would; `loose` desks are `loose` times as late or early."""
    quarters = song.tempo / 60  # a second
    before = None
    for note in notes:
        start = max(0, note.start + rng.gauss(0, 0.012) * quarters * loose)
        length = note.length * (1.0 if note.joined else rng.uniform(0.75, 0.95))
        velocity = rng.gauss(88, 12)
        gesture = Gesture(rng, lead, note, before, length / quarters)
        for i in range(max(2, int(gesture.seconds / STEP))):
            moment = start + i * STEP * quarters
            song.bend(channel, moment, gesture.bend(i * STEP))
            song.control(channel, moment, EXPRESSION, 127 * gesture.level(i * STEP))
        song.note(channel, start, length, note.pitch, velocity)
        before = note.pitch if note.joined or rng.random() < 0.4 else None
