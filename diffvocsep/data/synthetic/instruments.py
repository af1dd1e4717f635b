"""The band: six instrument families, each a player that reads the score and returns its sound."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .score import Score, melody, voicing
from .tones import add, band_noise, damped_partials, frame_times, pan, pitch_curve, smooth, top_frequency, wavetable

Layers = list[np.ndarray]  # mono waveforms (N,), each to be panned on its own


class _Sampler:
    """Struck or plucked notes of one timbre: stretched partials f_k = k f0 sqrt(1 + B k^2) (Fletcher, JASA 36, 1964)
    that decay the faster the higher they are. A pitch is drawn once and played often."""

    def __init__(
        self,
        rng: np.random.Generator,
        score: Score,
        sample_rate: int,
        tilt: float,
        decay: float,
        damping: float,
        partials: int,
        seconds: float,
    ) -> None:
        """Amplitudes fall as k^-tilt; partials decay at `decay` + `damping` per kHz, in 1/s; notes last `seconds`."""
        self.score, self.sample_rate, self.length = score, sample_rate, int(seconds * sample_rate)
        self.k = np.arange(1.0, partials + 1)
        position = rng.uniform(0.08, 0.45)  # plucking at this share of the string weakens some harmonics
        self.amplitude = self.k**-tilt * (0.15 + np.abs(np.sin(np.pi * self.k * position)))
        self.amplitude = self.amplitude * np.exp(2j * np.pi * rng.random(partials))
        self.stretch = np.sqrt(1.0 + 10.0 ** rng.uniform(-5.0, -3.5) * self.k**2)
        self.decay, self.damping = decay, damping
        self.notes: dict[int, np.ndarray] = {}

    def __call__(self, pitch: int) -> np.ndarray:
        if pitch not in self.notes:
            frequency = self.k * self.score.frequency(pitch) * self.stretch
            decay = self.decay + self.damping * frequency / 1000.0
            wave = damped_partials(frequency, decay, self.amplitude, self.length, self.sample_rate)
            self.notes[pitch] = wave * _edges(wave.size, 0.004, 0.05, self.sample_rate)
        return self.notes[pitch]


def _edges(size: int, attack: float, release: float, sample_rate: int) -> np.ndarray:
    """Gains (size,) that rise over `attack` s and fall over the last `release` s."""
    n = np.arange(size, dtype=np.float32) / np.float32(sample_rate)
    return np.clip(n / np.float32(attack), 0.0, 1.0) * np.clip((n[-1] - n) / np.float32(release), 0.0, 1.0)


def _steps(score: Score, division: int) -> list[tuple[float, tuple[int, ...], int]]:
    """(time in s, chord, step in the bar) of every 1/division of a beat in the song."""
    steps = []
    for start, chord in score.bars():
        for step in range(score.beats_per_bar * division):
            steps.append((start + step * score.beat / division, chord, step))
    return steps


def plucked(rng: np.random.Generator, score: Score, length: int, sample_rate: int, low: int) -> Layers:
    """Arpeggios, or strums with the strings a few ms apart: guitar, harp, mandolin."""
    string = _Sampler(
        rng, score, sample_rate, rng.uniform(0.5, 1.3), rng.uniform(0.8, 3.0), rng.uniform(0.5, 2.0), 40, 1.5
    )
    out = np.zeros(length, np.float32)
    strum = rng.random() < 0.4
    pattern = rng.integers(0, 6, size=8)
    for time, chord, step in _steps(score, 2):
        strings = voicing(chord, low) + voicing(chord, low + 12)
        if strum and (step % 2 == 0 or rng.random() < 0.4):
            for order, pitch in enumerate(strings[:5]):
                add(out, string(pitch) * np.float32(rng.uniform(0.5, 1.0)), int((time + 0.012 * order) * sample_rate))
        elif not strum and rng.random() < 0.95:
            pitch = strings[pattern[step % 8]]
            add(out, string(pitch) * np.float32(rng.uniform(0.6, 1.0)), int(time * sample_rate))
    return [out]


def keys(rng: np.random.Generator, score: Score, length: int, sample_rate: int, low: int) -> Layers:
    """Comping chords: piano to electric piano, by the number and slope of the partials."""
    partials = int(rng.integers(6, 32))
    hammer = _Sampler(
        rng, score, sample_rate, rng.uniform(0.9, 1.8), rng.uniform(0.5, 2.0), rng.uniform(0.2, 1.0), partials, 2.0
    )
    out = np.zeros(length, np.float32)
    hit = rng.random(8) < 0.45
    hit[0] = True
    for time, chord, step in _steps(score, 2):
        if hit[step % 8]:
            for pitch in voicing(chord, low):
                add(out, hammer(pitch) * np.float32(rng.uniform(0.6, 1.0)), int(time * sample_rate))
    return [out]


def bass(rng: np.random.Generator, score: Score, length: int, sample_rate: int, low: int) -> Layers:
    """Roots and fifths two octaves down."""
    string = _Sampler(
        rng, score, sample_rate, rng.uniform(0.8, 1.6), rng.uniform(1.0, 3.0), rng.uniform(1.0, 4.0), 30, 1.0
    )
    out = np.zeros(length, np.float32)
    hit = rng.random(8) < rng.uniform(0.3, 0.9)
    hit[0] = True
    for time, chord, step in _steps(score, 2):
        if hit[step % 8]:
            pitch = 28 + (chord[2 if step and rng.random() < 0.2 else 0] - 28) % 12
            add(out, string(pitch) * np.float32(rng.uniform(0.7, 1.0)), int(time * sample_rate))
    return [out]


def bowed(rng: np.random.Generator, score: Score, length: int, sample_rate: int, low: int) -> Layers:
    """A lead line in the singer's register: near-sawtooth harmonics, fixed body resonances, slow attack, vibrato."""
    out = np.zeros(length, np.float32)
    top = top_frequency(sample_rate)
    depth, tilt, attack = rng.uniform(0.1, 0.6), rng.uniform(1.0, 1.7), rng.uniform(0.06, 0.2)
    centre = rng.uniform(np.log(300.0), np.log(5000.0), 6)
    height = rng.uniform(-0.7, 1.2, 6)
    for phrase in melody(rng, score, low, low + 17, activity=0.93):
        times, note = frame_times(phrase, 0.1, sample_rate)
        f0 = pitch_curve(rng, score, phrase, times, note, int(rng.integers(3, 9)), depth)
        k = np.arange(1, int(top / f0.min()) + 1)
        octave = np.log(np.maximum(f0[:, None] * k, 1.0)).astype(np.float32)
        body = sum(
            h * np.exp(-(((octave - np.float32(c)) / np.float32(0.3)) ** 2))
            for c, h in zip(centre, height, strict=True)
        )
        spectra = k**-tilt * np.exp(body) * np.clip((top - f0[:, None] * k) / 1000.0, 0.0, 1.0)
        start = np.array([n.start for n in phrase])[note]
        stop = phrase[-1].start + phrase[-1].duration
        bow = 0.3 + 0.7 * np.clip((times - start) / attack, 0.0, 1.0)
        bow = bow * np.clip((times - times[0]) / attack, 0.0, 1.0) * np.clip((stop + 0.08 - times) / 0.15, 0.0, 1.0)
        bow = smooth(bow * np.array([n.velocity for n in phrase])[note], 5) * (1.0 + rng.normal(0.0, 0.03, times.size))
        bow[[0, -1]] = 0.0
        add(out, wavetable(f0, -1j * spectra * bow[:, None], sample_rate), round(phrase[0].start * sample_rate))
    return [out]


def pads(rng: np.random.Generator, score: Score, length: int, sample_rate: int, low: int) -> Layers:
    """Sustained chords of detuned sawtooths, two layers a little apart; some with a vowel-like pair of resonances."""
    bar = score.beat * score.beats_per_bar
    size = int((bar + 0.25) * sample_rate)
    envelope = _edges(size, rng.uniform(0.08, 0.3), 0.3, sample_rate)
    k = np.arange(1.0, 21.0)
    tilt, cents = rng.uniform(0.9, 1.6), rng.uniform(4.0, 14.0)
    choir = rng.uniform(2.0, 5.0) if rng.random() < 0.5 else 0.0
    layers = [np.zeros(length, np.float32), np.zeros(length, np.float32)]
    for start, chord in score.bars():
        resonance = rng.uniform((350.0, 900.0), (800.0, 2300.0))
        for layer in layers:
            detune = rng.uniform(-cents, cents, (len(chord), 2)) / 100.0
            f0 = score.frequency(np.array(voicing(chord, low))[:, None] + detune)
            frequency = (f0[..., None] * k).ravel()
            amplitude = np.tile(k**-tilt, f0.size) * np.exp(2j * np.pi * rng.random(frequency.size))
            peaks = np.exp(-(((frequency[:, None] - resonance) / (0.15 * resonance)) ** 2)).sum(axis=1)
            amplitude *= 1.0 + choir * peaks
            drift = rng.uniform(-0.3, 0.5, frequency.size)  # 1/s: some partials swell while others fade
            wave = damped_partials(frequency, drift, amplitude, size, sample_rate)
            add(layer, wave * envelope, int(start * sample_rate))
    return layers


def drums(rng: np.random.Generator, score: Score, length: int, sample_rate: int, low: int) -> Layers:
    """Kick and snare on one layer, hats or shaker on the other, in sixteenths."""
    shells, metal = np.zeros(length, np.float32), np.zeros(length, np.float32)
    time = np.arange(int(0.35 * sample_rate)) / sample_rate
    edges = _edges(time.size, 0.001, 0.05, sample_rate)

    def rattle(low: float, high: float, seconds: float) -> np.ndarray:
        return band_noise(rng, time.size, low, high, sample_rate) * np.exp(-time / seconds) * edges

    sweep = rng.uniform(45.0, 60.0) * time + rng.uniform(2.0, 5.0) * (1.0 - np.exp(-time / 0.03))
    modes, fall = rng.uniform(170.0, 230.0) * np.array([1.0, 1.6, 2.3]), np.array([18.0, 25.0, 30.0])
    kick = np.sin(2 * np.pi * sweep) * np.exp(-time / 0.09) * edges
    snare = damped_partials(modes, fall, np.full(3, -0.3j), time.size, sample_rate) * edges
    snare = snare + 0.35 * rattle(900.0, rng.uniform(6000.0, 12000.0), rng.uniform(0.05, 0.12))
    hat = 0.2 * rattle(rng.uniform(5000.0, 8000.0), 15000.0, rng.uniform(0.015, 0.06))

    sixteen = score.beats_per_bar * 4
    kicks = np.arange(sixteen) % 8 == 0
    kicks |= rng.random(sixteen) < 0.1
    snares = np.arange(sixteen) % 8 == 4
    every = int(rng.choice((1, 2)))
    for start, _, step in _steps(score, 4):
        at = int(start * sample_rate)
        if kicks[step]:
            add(shells, kick * rng.uniform(0.8, 1.0), at)
        if snares[step] or rng.random() < 0.04:
            add(shells, snare * rng.uniform(0.5, 1.0), at)
        if step % every == 0:
            add(metal, hat * rng.uniform(0.3, 1.0), at)
    return [shells, metal]


Player = Callable[[np.random.Generator, Score, int, int, int], Layers]
# Each player, its RMS in the mix in dB, and how far from the centre its layers may be panned.
BAND: dict[str, tuple[Player, float, float]] = {
    "plucked": (plucked, 0.0, 1.0),
    "bowed": (bowed, 1.0, 1.0),
    "keys": (keys, 0.0, 1.0),
    "bass": (bass, -3.0, 0.3),
    "drums": (drums, -4.0, 0.5),
    "pads": (pads, -1.0, 1.0),
}
FAMILIES: tuple[str, ...] = tuple(BAND)


def play(rng: np.random.Generator, score: Score, family: str, length: int, sample_rate: int, low: int) -> np.ndarray:
    """One family's part (2, length), its layers panned at random, some of them to the very centre.

    `low` is the MIDI pitch at which the melody and chord players start, so that they meet the singer's register.
    """
    player, level, width = BAND[family]
    layers = player(rng, score, length, sample_rate, low)
    out = np.zeros((2, length), np.float32)
    for layer in layers:
        out += pan(layer, 0.0 if rng.random() < 0.25 else rng.uniform(-width, width))
    power = np.sqrt(np.mean(out**2) * 2) + 1e-9
    return out * np.float32(10.0 ** ((level + rng.uniform(-3.0, 3.0)) / 20) / power)
