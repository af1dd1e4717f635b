"""Synthetic songs: reproducible, musical, level as promised, and hard enough that no classic trick separates them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage, signal

from diffvocsep.config import load_config
from diffvocsep.data.synthetic import tracks as synthetic_tracks
from diffvocsep.data.synthetic.score import Note, Score, melody, random_score
from diffvocsep.data.synthetic.song import FAMILIES, VOICES, Song, make_song
from diffvocsep.data.synthetic.tones import (
    HOP,
    band_noise,
    damped_partials,
    frame_times,
    pan,
    pitch_curve,
    reverb,
    smooth,
    wavetable,
)
from diffvocsep.data.synthetic.voices import SINGERS, VOWELS, sing, tract_response
from diffvocsep.util.errors import UserError

RATE = 44100
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def songs() -> list[Song]:
    return [make_song(7, index, seconds=4.0) for index in range(20)]


def sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Global SDR in dB over both channels."""
    reference, estimate = reference.astype(float), estimate.astype(float)
    return 10 * np.log10(np.sum(reference**2) / np.sum((reference - estimate) ** 2))


def digest(song: Song) -> str:
    return hashlib.sha256(song.vocals.tobytes() + song.accompaniment.tobytes()).hexdigest()


# --- the song as data ---


def test_the_same_arguments_give_the_same_song_in_another_process() -> None:
    code = (
        "import hashlib; from diffvocsep.data.synthetic.song import make_song; s = make_song(3, 4, 2.0);"
        "print(hashlib.sha256(s.vocals.tobytes() + s.accompaniment.tobytes()).hexdigest())"
    )
    np.random.seed(1)  # the global generator has no say
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest(make_song(3, 4, 2.0))


def test_seed_and_index_each_change_the_song() -> None:
    digests = {digest(make_song(seed, index, 1.0)) for seed in range(3) for index in range(3)}
    assert len(digests) == 9


@pytest.mark.parametrize(("seconds", "rate"), [(1.0, 44100), (2.3456, 44100), (2.0, 48000), (1.5, 8000), (1.7, 22050)])
def test_length_and_rate_are_exact(seconds: float, rate: int) -> None:
    for index in range(4):
        song = make_song(0, index, seconds, rate)
        assert song.sample_rate == rate
        for stem in (song.vocals, song.accompaniment):
            assert stem.shape == (2, round(seconds * rate))
            assert stem.dtype == np.float32
            assert np.isfinite(stem).all()
            assert np.abs(stem).max() > 0.01


def test_stems_and_mixture_stay_below_full_scale_without_dc(songs: list[Song]) -> None:
    for song in songs:
        mixture = song.vocals + song.accompaniment
        for wave in (song.vocals, song.accompaniment, mixture):
            assert np.abs(wave).max() <= 1.0
            assert np.abs(wave.mean(axis=1, dtype=float)).max() < 1e-3 * np.sqrt(np.mean(wave**2))
        assert np.abs(mixture).max() > 0.3


def test_held_out_voices_and_families_never_appear() -> None:
    kept_voices, kept_families = ("tenor", "child"), ("keys", "drums", "bass")
    songs = [make_song(1, i, 1.0, 8000, kept_voices, kept_families) for i in range(20)]
    assert {song.voice for song in songs} == set(kept_voices)
    assert {family for song in songs for family in song.families} == set(kept_families)


def test_every_voice_and_family_appears_and_bands_have_two_to_five() -> None:
    songs = [make_song(2, i, 1.0, 8000) for i in range(40)]
    assert {song.voice for song in songs} == set(VOICES)
    assert {family for song in songs for family in song.families} == set(FAMILIES)
    assert {len(song.families) for song in songs} == {2, 3, 4, 5}
    assert all(len(set(song.families)) == len(song.families) for song in songs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_alone_makes_sound_at_every_rate(family: str) -> None:
    for rate in (8000, 44100):
        song = make_song(4, 1, 2.0, rate, families=[family])
        assert song.families == (family,)
        assert np.sqrt(np.mean(song.accompaniment**2)) > 0.01


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"voices": ["tenorr"]}, ["voice", "tenorr", "'tenor'"]),
        ({"families": ["keys", "padz"]}, ["family", "padz", "'pads'"]),
        ({"voices": []}, ["voice", "empty"]),
        ({"families": ()}, ["family", "empty"]),
        ({"seconds": 0.2}, ["0.2 s", "1 s"]),
        ({"sample_rate": 4000}, ["4000 Hz", "8000 Hz"]),
        ({"seed": -1}, ["-1", "0 or more"]),
    ],
)
def test_bad_arguments_are_named(arguments: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        make_song(**{"seed": 0, "index": 0, **arguments})
    assert all(word in str(error.value) for word in words)


# --- the song as music ---


def test_levels_have_the_promised_median_and_spread() -> None:
    levels = []
    for index in range(80):
        song = make_song(5, index, 1.0, 8000)
        levels.append(sdr(song.vocals, song.vocals + song.accompaniment))
    assert np.median(levels) == pytest.approx(-3.0, abs=1.0)
    assert 1.8 < np.std(levels) < 3.2


def test_the_voice_pauses_between_phrases() -> None:
    shares = []
    for index in range(16):
        vocals = make_song(6, index, 8.0, 8000).vocals
        level = np.sqrt(np.mean(vocals.reshape(2, -1, 400) ** 2, axis=(0, 2)))  # 50 ms
        active = level > 0.01 * np.percentile(level, 95)
        shares.append(active.mean())
        starts = np.flatnonzero(np.diff(active.astype(int)) > 0)
        assert len(starts) + active[0] >= 2
    assert all(0.5 <= share <= 0.9 for share in shares)


def test_the_voice_is_not_always_centred(songs: list[Song]) -> None:
    balance = [np.diff(10 * np.log10(np.sum(song.vocals.astype(float) ** 2, axis=1)))[0] for song in songs]
    assert np.std(balance) > 1.5
    assert min(balance) < -2.0 and max(balance) > 2.0
    assert sum(abs(b) < 0.5 for b in balance) >= 3


def test_an_instrument_stands_anywhere_from_side_to_side() -> None:
    songs = [make_song(3, index, 1.0, 8000, families=["keys"]) for index in range(24)]
    left, right = np.array([np.sum(song.accompaniment.astype(float) ** 2, axis=1) for song in songs]).T
    side = (right - left) / (right + left)
    assert side.min() < -0.7 and side.max() > 0.7
    assert np.mean(np.abs(side) < 0.1) > 0.15


def sung_pitches(vocals: np.ndarray) -> np.ndarray:
    """Pitch in semitones of each clearly periodic frame, from its autocorrelation alone."""
    frames = np.lib.stride_tricks.sliding_window_view(vocals.sum(axis=0), 4096)[::1024] * np.hanning(4096)
    frames = frames[np.sum(frames**2, axis=1) > 0.05 * np.percentile(np.sum(frames**2, axis=1), 90)]
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(4096), 8192)) ** 2)[:700]
    correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 8192)) ** 2)[:, :700] / window
    correlation /= correlation[:, :1]
    pitches = []
    for row in correlation:
        peaks = np.flatnonzero((row[1:-1] > row[:-2]) & (row[1:-1] >= row[2:])) + 1
        peaks = peaks[(peaks > RATE / 1200) & (row[peaks] > 0.9)]
        if peaks.size:
            lag = peaks[row[peaks] > row[peaks].max() - 0.05][0]
            a, b, c = row[lag - 1 : lag + 2]
            pitches.append(69 + 12 * np.log2(RATE / (lag + 0.5 * (a - c) / (a - 2 * b + c)) / 440))
    return np.array(pitches)


def share_in_a_key(pitches: np.ndarray) -> float:
    """The largest share of pitches that round to one diatonic scale, over 12 keys and 12 tunings."""
    best = 0.0
    for tuning in np.arange(12) / 12:
        classes = np.round(pitches - tuning).astype(int) % 12
        best = max(best, *(np.isin((classes - key) % 12, (0, 2, 4, 5, 7, 9, 11)).mean() for key in range(12)))
    return best


def test_the_voice_sings_in_a_key(songs: list[Song]) -> None:
    rng = np.random.default_rng(0)
    shares, random_shares = [], []
    for song in songs:
        pitches = sung_pitches(song.vocals)
        assert pitches.size > 25
        shares.append(share_in_a_key(pitches))
        random_shares.append(share_in_a_key(rng.uniform(48, 72, pitches.size)))
    assert np.median(shares) > 0.88
    assert np.median(random_shares) < 0.75  # the same measure tells music from noise


def test_melodies_keep_to_scale_chord_beat_and_range() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        score = random_score(rng, 12.0)
        assert 70 <= 60 / score.beat <= 140
        notes = [note for phrase in melody(rng, score, 55, 72, 0.75) for note in phrase]
        for note in notes:
            half_beats = note.start / score.beat * 2
            assert half_beats == pytest.approx(round(half_beats), abs=1e-9)
            assert 55 <= note.pitch <= 72
            allowed = score.scale if round(half_beats) % 2 else score.chord_at(note.start + 1e-6)
            assert note.pitch % 12 in allowed
        assert all(a.start + a.duration <= b.start + 1e-9 for a, b in pairwise(notes))
        assert notes[-1].start + notes[-1].duration <= 12.0 + 1e-9


# --- the task is real: what a trick without learning can reach, against the ideal mask ---


def centre(mixture: np.ndarray) -> np.ndarray:
    return np.repeat(mixture.mean(axis=0, keepdims=True), 2, axis=0)


def band_pass(mixture: np.ndarray) -> np.ndarray:
    return signal.sosfiltfilt(signal.butter(4, [200, 4000], "band", fs=RATE, output="sos"), mixture)


def masked(mixture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return signal.istft(stft(mixture) * mask, RATE, "hann", 4096, 3072)[1][:, : mixture.shape[1]]


def stft(wave: np.ndarray) -> np.ndarray:
    return signal.stft(wave, RATE, "hann", 4096, 3072)[2]


def harmonic_part(mixture: np.ndarray) -> np.ndarray:
    """Median-filter HPSS (Fitzgerald, DAFx 2010), one mask for both channels.

    The filters run along the raveled spectrogram, eight times faster than in two dimensions; only its borders differ.
    """
    magnitude = np.abs(stft(mixture.mean(axis=0))).astype(np.float32)
    harmonic = ndimage.median_filter(magnitude.ravel(), 17).reshape(magnitude.shape) ** 2
    percussive = ndimage.median_filter(magnitude.T.ravel(), 17).reshape(magnitude.T.shape).T ** 2
    return masked(mixture, harmonic / (harmonic + percussive + 1e-12))


@pytest.mark.slow
def test_no_simple_trick_separates_but_the_ideal_mask_does(songs: list[Song]) -> None:
    tricks = {
        "centre": centre,
        "band-pass": band_pass,
        "centre and band-pass": lambda mixture: band_pass(centre(mixture)),
        "harmonic": harmonic_part,
    }
    scores: dict[str, list[float]] = {name: [] for name in (*tricks, "ideal")}
    for song in songs:
        vocals, accompaniment = song.vocals.astype(float), song.accompaniment.astype(float)
        mixture = vocals + accompaniment
        for name, trick in tricks.items():
            scores[name].append(sdr(vocals, trick(mixture)))
        power, other = np.abs(stft(vocals)) ** 2, np.abs(stft(accompaniment)) ** 2
        scores["ideal"].append(sdr(vocals, masked(mixture, power / (power + other + 1e-20))))
    medians = {name: float(np.median(values)) for name, values in scores.items()}
    assert all(medians[name] < 2.0 for name in tricks), medians
    assert medians["ideal"] > 10.0, medians


def test_a_song_costs_at_most_15_transforms_of_it() -> None:
    """There and back, and a sine of each sample: a measure that is as slow as the machine."""
    wave = np.random.default_rng(0).normal(0, 1, 8 * 44100)

    def cost(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    make_song(8, 0, 1.0)
    songs, transforms = [], []
    for _ in range(3):  # in turns, and the best of each: on a busy machine the others pay for their neighbours
        songs.append(cost(lambda: [make_song(8, index, 8.0) for index in range(3)]) / 3)
        transforms.append(cost(lambda: [np.sin(np.fft.irfft(np.fft.rfft(wave))) for _ in range(20)]) / 20)
    assert min(songs) < 15 * min(transforms)


# --- the generators against direct sums ---


def test_damped_partials_equal_the_direct_sum() -> None:
    rng = np.random.default_rng(0)
    frequency, decay = rng.uniform(50, 9000, 12), rng.uniform(-0.5, 20, 12)
    amplitude = rng.normal(size=12) + 1j * rng.normal(size=12)
    t = np.arange(5000) / RATE
    expected = sum(
        (a * np.exp((2j * np.pi * f - d) * t)).real for f, d, a in zip(frequency, decay, amplitude, strict=True)
    )
    frequency, decay, amplitude = np.append(frequency, 30000.0), np.append(decay, 0.0), np.append(amplitude, 1.0)
    wave = damped_partials(frequency, decay, amplitude, 5000, RATE)  # the 13th would alias, and is left out
    np.testing.assert_allclose(wave, expected, atol=1e-4)


def test_wavetable_equals_the_direct_sum_of_gliding_harmonics() -> None:
    rng = np.random.default_rng(0)
    f0 = np.linspace(200.0, 230.0, 41)
    spectra = np.outer(np.linspace(0.2, 1.0, 41), (rng.normal(size=20) + 1j * rng.normal(size=20)) / np.arange(1, 21))
    samples = np.arange(40 * HOP) / HOP
    phase = 2 * np.pi * np.cumsum(np.interp(samples, np.arange(41), f0)) / RATE
    gain = np.interp(samples, np.arange(41), np.linspace(0.2, 1.0, 41))
    expected = gain * sum((spectra[-1, k - 1] * np.exp(1j * k * phase)).real for k in range(1, 21))
    error = wavetable(f0, spectra, RATE) - expected
    assert np.sqrt(np.mean(error**2)) < 1e-3 * np.sqrt(np.mean(expected**2))


def test_band_noise_has_unit_power_within_its_band() -> None:
    noise = band_noise(np.random.default_rng(0), 1 << 17, 1000.0, 4000.0, RATE)
    assert np.mean(noise**2) == pytest.approx(1.0, rel=0.02)
    frequency, density = signal.welch(noise, RATE, nperseg=2048)
    _, low = signal.freqs(*signal.butter(2, 1000.0, "high", analog=True), worN=frequency)
    _, high = signal.freqs(*signal.butter(2, 4000.0, "low", analog=True), worN=frequency)
    expected = np.abs(low * high) ** 2
    for first in (15, 30, 60, 120, 240, 480):  # octaves from 320 Hz
        octave = slice(first, 2 * first)
        share = density[octave].sum() / density.sum()
        assert share == pytest.approx(expected[octave].sum() / expected.sum(), rel=0.15)


def test_smooth_equals_a_convolution_with_a_hann_window() -> None:
    curve = np.random.default_rng(0).normal(size=50)
    window = signal.windows.hann(11)[1:-1]
    expected = np.convolve(curve, window / window.sum(), mode="valid")
    np.testing.assert_allclose(smooth(curve, 9)[4:-4], expected, atol=1e-12)
    np.testing.assert_allclose(smooth(np.full((20, 3), 2.5), 8), 2.5)


def test_pan_keeps_the_power_and_reverb_adds_its_level() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=RATE).astype(np.float32)
    for position in (-1.0, -0.4, 0.0, 0.7, 1.0):
        assert np.sum(pan(noise, position) ** 2) == pytest.approx(np.sum(noise**2), rel=1e-4)
    dry = pan(noise, 0.0)
    wet = reverb(rng, dry, 0.4, 20.0, RATE) - dry
    assert 10 * np.log10(np.sum(wet**2) / np.sum(dry**2)) == pytest.approx(-20.0, abs=1.0)


def test_tract_response_peaks_at_the_formants() -> None:
    frequency = np.arange(50.0, 4000.0, 5.0, dtype=np.float32)[None]
    for formants in VOWELS[[0, 2, 3]]:  # vowels whose formants stand well apart
        gain = np.abs(tract_response(frequency, formants[None]))[0]
        peaks = frequency[0, signal.find_peaks(gain)[0]]
        np.testing.assert_allclose(peaks, formants, rtol=0.05)


def one_note(seconds: float, pitch: int) -> tuple[Score, list[Note]]:
    score = Score(seconds, 0.5, 4, (0, 2, 4, 5, 7, 9, 11), ((0, 4, 7),), 0.0)
    return score, [Note(0.0, seconds, pitch, 1.0)]


def test_vibrato_comes_late_at_4_5_to_7_hz() -> None:
    score, phrase = one_note(6.0, 69)
    times, note = frame_times(phrase, 0.0, RATE)
    rates = set()
    for seed in range(10):
        semitones = 12 * np.log2(pitch_curve(np.random.default_rng(seed), score, phrase, times, note, 9, 0.5) / 440)
        spectrum = np.abs(np.fft.rfft((semitones - smooth(semitones, 61)) * np.hanning(times.size), 8192))
        rate = spectrum.argmax() / 8192 * RATE / HOP
        assert 4.4 < rate < 7.1
        wobble = semitones - smooth(semitones, 15)  # less the slow drift
        assert np.std(wobble[times < 0.1]) < 0.05 < 0.15 < np.std(wobble[times > 0.7])
        assert semitones.mean() == pytest.approx(0.0, abs=0.15)
        rates.add(round(rate, 1))
    assert len(rates) > 3


@pytest.mark.parametrize("voice", VOICES)
def test_each_voice_sings_the_written_pitch_with_its_own_formants(voice: str) -> None:
    pitch = (SINGERS[voice].low + SINGERS[voice].high) // 2
    score, phrase = one_note(2.0, pitch)
    wave = sing(np.random.default_rng(1), score, voice, [phrase], 3 * RATE, RATE)
    heard = sung_pitches(wave[None])
    assert np.median((heard - pitch + 6) % 12 - 6) == pytest.approx(0.0, abs=0.3)
    assert np.abs(wave[int(2.2 * RATE) :]).max() == 0.0  # silent after the phrase
    assert 0.2 < np.sqrt(np.mean(wave[: 2 * RATE] ** 2)) < 1.5


def test_vowels_change_the_spectrum_from_note_to_note() -> None:
    """The centre of gravity of the harmonics moves, though the pitch stays."""
    score, _ = one_note(6.0, 57)
    phrase = [Note(float(i), 1.0, 57, 1.0) for i in range(6)]
    wave = sing(np.random.default_rng(3), score, "baritone", [phrase], 6 * RATE, RATE)
    frequency, _, spectrum = signal.stft(wave, RATE, nperseg=4096)
    power = np.abs(spectrum[frequency < 4000]) ** 2
    frames = np.linspace(0.5, 5.5, 6) * RATE / 2048
    gravity = (frequency[frequency < 4000] @ power / power.sum(axis=0))[frames.astype(int)]
    assert gravity.max() > 1.3 * gravity.min()


def test_songs_are_kept_or_made_each_time(monkeypatch):
    """The samples are the same; without a cache, memory does not grow."""
    made = []
    monkeypatch.setattr(synthetic_tracks, "make_song", lambda *a: made.append(a) or make_song(*a))
    found = {}
    for cache in ("memory", "none"):
        made.clear()
        config = load_config(None, ["data.synthetic_songs=1", "audio.sample_rate=8000", f"data.cache={cache}"])
        (track,) = synthetic_tracks.synthetic_tracks(config, "train")
        found[cache] = [track.read(side, 0.5, 1.0, 8000) for side in ("vocals", "accompaniment")]
        levels = [track.loudness("vocals", 8000) for _ in range(3)]
        assert levels[0] == levels[2] > 0
        assert len(made) == {"memory": 1, "none": 3}[cache]
    assert all(map(torch.equal, found["memory"], found["none"]))
