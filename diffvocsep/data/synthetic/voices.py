"""The singer: a glottal source through moving formants (source-filter model), with consonants and breath."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .score import Phrase, Score
from .tones import add, band_noise, frame_times, pitch_curve, smooth, to_samples, top_frequency, wavetable


@dataclass(frozen=True)
class Voice:
    """`low` and `high` bound the melody in MIDI pitch; `tract` scales the formants (short tracts sound higher); `tilt`
    is the fall of the source in dB/octave, and `ring` the height of the singer's formant near 2.9 kHz."""

    low: int
    high: int
    tract: float
    tilt: float
    ring: float


SINGERS = {
    "bass": Voice(41, 60, 0.93, 3.5, 2.5),
    "baritone": Voice(45, 64, 1.0, 3.5, 2.5),
    "tenor": Voice(49, 68, 1.04, 4.0, 2.0),
    "alto": Voice(54, 73, 1.15, 4.5, 1.0),
    "soprano": Voice(60, 79, 1.2, 4.5, 0.5),
    "child": Voice(60, 76, 1.35, 5.0, 0.0),
}
VOICES: tuple[str, ...] = tuple(SINGERS)

# F1, F2, F3 in Hz of men's vowels: Peterson & Barney, JASA 24 (1952), Table II.
VOWELS = np.array(
    [
        (270, 2290, 3010),  # heed
        (390, 1990, 2550),  # hid
        (530, 1840, 2480),  # head
        (660, 1720, 2410),  # had
        (730, 1090, 2440),  # hod
        (570, 840, 2410),  # hawed
        (440, 1020, 2240),  # hood
        (300, 870, 2240),  # who'd
        (640, 1190, 2390),  # hud
    ],
    float,
)
# The higher formants hardly move: a uniform tube of 17.5 cm has one each 1000 Hz (Fant, 1960).
HIGHER_FORMANTS = np.arange(3500.0, 13000.0, 1000.0)

# Unvoiced consonants: low and high band edge in Hz, duration in s, level against the vowel.
CONSONANTS = {
    "s": (4500.0, 11000.0, 0.10, 0.25),
    "sh": (2200.0, 7000.0, 0.10, 0.30),
    "f": (1200.0, 9000.0, 0.08, 0.12),
    "h": (500.0, 4500.0, 0.07, 0.15),
    "t": (2500.0, 9000.0, 0.03, 0.45),
    "k": (1200.0, 4500.0, 0.03, 0.45),
    "p": (300.0, 3000.0, 0.02, 0.40),
}
PLOSIVES = ("t", "k", "p")


def tract_response(frequency: np.ndarray, formants: np.ndarray) -> np.ndarray:
    """Complex gain (F, K) at frequencies (F, K) of a cascade of resonators at formants (F, D), all in Hz.

    Each is F^2 / (F^2 - f^2 + j f B) (Klatt, JASA 67, 1980, in its analogue form) with B = 50 Hz + F / 20.
    """
    response = np.ones(frequency.shape, np.complex64)
    square = frequency**2
    for formant in formants.T.astype(np.float32)[..., None]:
        response *= formant**2 / (formant**2 - square + 1j * frequency * (50.0 + formant / 20.0))
    return response


def sing(
    rng: np.random.Generator, score: Score, name: str, phrases: list[Phrase], length: int, sample_rate: int
) -> np.ndarray:
    """One take (length,) of the phrases by the voice `name`: RMS near 1 while it sounds, silent between phrases."""
    out = np.zeros(length, np.float32)
    depth, breath = rng.uniform(0.2, 0.7), 10.0 ** rng.uniform(-2.4, -1.6)
    for phrase in phrases:
        wave = _voiced(rng, score, SINGERS[name], phrase, depth, breath, sample_rate)
        add(out, wave, round(phrase[0].start * sample_rate))
        if rng.random() < 0.6:
            _inhale(rng, out, phrase[0].start, sample_rate)
    return out


def _voiced(
    rng: np.random.Generator,
    score: Score,
    voice: Voice,
    phrase: Phrase,
    depth: float,
    breath: float,
    sample_rate: int,
) -> np.ndarray:
    """The vowels and consonants of one phrase, from its first onset on."""
    times, note = frame_times(phrase, 0.05, sample_rate)
    f0 = pitch_curve(rng, score, phrase, times, note, int(rng.integers(7, 15)), depth)
    formants = _formants(rng, voice, phrase, times, note)
    formants[:, 0] = np.maximum(formants[:, 0], f0)  # high voices open the jaw until F1 reaches f0 (Sundberg, 1987)
    spectra = _spectra(rng, voice, f0, formants, sample_rate)

    consonants = [rng.choice(list(CONSONANTS)) if rng.random() < 0.6 else "" for _ in phrase]
    loudness = _loudness(rng, phrase, consonants, times, note)
    loudness[0] = 0.0  # no click
    wave = wavetable(f0, spectra * loudness[:, None], sample_rate)
    wave += breath * band_noise(rng, wave.size, 800.0, 7000.0, sample_rate) * to_samples(loudness)
    for consonant, sung in zip(consonants, phrase, strict=True):
        if consonant:
            start = round((sung.start - phrase[0].start) * sample_rate)
            add(wave, _consonant(rng, consonant, sample_rate), start)
    return wave


def _formants(
    rng: np.random.Generator, voice: Voice, phrase: Phrase, times: np.ndarray, note: np.ndarray
) -> np.ndarray:
    """F1 to F3 (F, 3) in Hz: a vowel per note, four notes in ten a diphthong, gliding from each to the next."""
    first = rng.integers(len(VOWELS), size=len(phrase))
    second = np.where(rng.random(len(phrase)) < 0.4, rng.integers(len(VOWELS), size=len(phrase)), first)
    turn = np.array([n.start + 0.6 * n.duration for n in phrase])
    vowel = np.where(times > turn[note], second[note], first[note])
    return voice.tract * np.exp(smooth(np.log(VOWELS[vowel]), int(rng.integers(9, 17))))


def _spectra(
    rng: np.random.Generator, voice: Voice, f0: np.ndarray, formants: np.ndarray, sample_rate: int
) -> np.ndarray:
    """Complex harmonic amplitudes (F, K) of unit power in each frame."""
    top = top_frequency(sample_rate)
    k = np.arange(1, int(top / f0.min()) + 1, dtype=np.float32)
    frequency = f0.astype(np.float32)[:, None] * k
    tilt = (voice.tilt + rng.uniform(-1.0, 1.5)) / 6.02
    source = k**-tilt * np.clip((top - frequency) / 1000.0, 0.0, 1.0)
    source *= 1.0 + voice.ring * np.exp(-(((frequency - 2900.0) / 500.0) ** 2))
    higher = np.broadcast_to(HIGHER_FORMANTS * voice.tract, (f0.size, HIGHER_FORMANTS.size))
    spectra = source * tract_response(frequency, np.concatenate((formants, higher), axis=1))
    power = np.sum(spectra.real**2 + spectra.imag**2, axis=1, keepdims=True)
    return spectra / np.sqrt(power / 2)


def _loudness(
    rng: np.random.Generator, phrase: Phrase, consonants: list[str], times: np.ndarray, note: np.ndarray
) -> np.ndarray:
    """Loudness (F,): each note swells and fades, and makes way for its consonant; frame-to-frame shimmer on top."""
    starts = np.array([n.start for n in phrase])
    ends = starts + np.array([n.duration for n in phrase])
    silent = np.array([CONSONANTS[c][2] if c else 0.0 for c in consonants])
    floor = np.where(silent > 0, 0.0, rng.uniform(0.3, 0.9, len(phrase)))
    floor[0] = 0.0
    attack = np.clip((times - starts[note] - silent[note]) / 0.06, 0.0, 1.0)
    attack = floor[note] + (1.0 - floor[note]) * attack
    fade = np.clip((ends[-1] - times) / rng.uniform(0.08, 0.25), 0.0, 1.0)
    swell = 1.0 - 0.3 * np.clip((times - starts[note]) / 1.5, 0.0, 1.0)
    velocity = np.array([n.velocity for n in phrase])[note]
    shimmer = 1.0 + rng.normal(0.0, 0.03, times.size)
    return smooth(attack * swell * velocity, 5) * fade * shimmer


def _consonant(rng: np.random.Generator, name: str, sample_rate: int) -> np.ndarray:
    low, high, seconds, level = CONSONANTS[name]
    size = int(seconds * rng.uniform(0.8, 1.2) * sample_rate)
    ramp = np.linspace(0.0, 1.0, size, dtype=np.float32)
    shape = np.exp(-5.0 * ramp) * (1.0 - ramp) if name in PLOSIVES else np.sqrt(ramp * (1.0 - ramp)) * 2.0
    return level * rng.uniform(0.6, 1.2) * shape * band_noise(rng, size, low, high, sample_rate)


def _inhale(rng: np.random.Generator, out: np.ndarray, onset: float, sample_rate: int) -> None:
    """A breath that ends as the phrase begins."""
    size = int(rng.uniform(0.15, 0.3) * sample_rate)
    shape = np.sin(np.pi * np.linspace(0.0, 1.0, size, dtype=np.float32) ** 1.5) ** 2
    noise = band_noise(rng, size, 700.0, 6000.0, sample_rate)
    add(out, rng.uniform(0.01, 0.05) * shape * noise, round(onset * sample_rate) - size)
