"""Speed, equalizer and place of a training stem, measured on sines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffvocsep.config import load_config
from diffvocsep.data.augment import KNOTS, Room, augment, rotate_stereo, source_length
from diffvocsep.data.mixing import Segments

RATE = 16000
LENGTH = 3 * RATE
FLAT = np.zeros(len(KNOTS), np.float32)


def sine(hertz: float, samples: int) -> torch.Tensor:
    return torch.sin(2 * np.pi * hertz * torch.arange(samples, dtype=torch.float64) / RATE).float()[None]


def altered(waveform: torch.Tensor, gains_db: np.ndarray = FLAT, room: Room | None = None) -> torch.Tensor:
    """One item, as a batch of one."""
    return augment(waveform[None], [waveform.shape[-1]], LENGTH, RATE, torch.from_numpy(gains_db)[None], [room])[0]


def level(waveform: torch.Tensor) -> float:
    """RMS in dB, without the ends, which ring."""
    inner = waveform[..., 2000:-2000]
    return 20 * np.log10(float(inner.square().mean()) ** 0.5)


@pytest.mark.parametrize("speed", [0.8, 0.94, 1.1, 1.25])
def test_a_sine_comes_back_at_its_new_pitch_and_old_level(speed):
    samples = source_length(LENGTH, speed)
    ratio = samples / LENGTH
    assert abs(ratio / speed - 1) < 1 / 200
    expected, got = sine(440 * ratio, LENGTH), altered(sine(440, samples))
    assert got.shape == (1, LENGTH)
    assert level(got - expected) < level(expected) - 50


def test_a_batch_is_its_items():
    """Of different speeds and equalizers; what an item has beyond its own samples is not heard."""
    generator = np.random.default_rng(0)
    samples = [source_length(LENGTH, speed) for speed in (0.9, 1.1, 1.0, 1.1, 1.06)]
    waveforms = torch.randn(5, 2, max(samples))
    gains_db = generator.normal(0, 3, (5, len(KNOTS))).astype(np.float32)
    rooms = [Room.draw(generator), None, Room.draw(generator), None, None]
    together = augment(waveforms, samples, LENGTH, RATE, torch.from_numpy(gains_db), rooms)
    for i, size in enumerate(samples):
        alone = altered(waveforms[i, :, :size], gains_db[i], rooms[i])
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=0)


def test_without_a_change_the_waveform_is_untouched():
    noise = torch.randn(2, LENGTH)
    assert source_length(LENGTH, 1) == LENGTH
    torch.testing.assert_close(altered(noise), noise, atol=1e-5, rtol=0)


@pytest.mark.parametrize("knot", range(1, 7))
def test_the_equalizer_has_its_gain_at_the_knots_and_half_of_it_between(knot):
    gains = FLAT.copy()
    gains[knot] = 6.0
    for hertz, gain in ((KNOTS[knot], 6.0), ((KNOTS[knot] * KNOTS[knot + 1]) ** 0.5, 3.0), (KNOTS[knot - 1], 0.0)):
        hertz = round(hertz * 3) / 3  # whole periods in three seconds
        if hertz < RATE / 2:
            assert level(altered(sine(hertz, LENGTH), gains)) - level(sine(hertz, LENGTH)) == pytest.approx(
                gain, abs=0.15
            )


def test_a_turned_centre_goes_to_the_left_and_then_into_opposite_phases():
    voice = torch.randn(1, LENGTH).expand(2, LENGTH)
    still, left, right, opposite = rotate_stereo(
        voice.expand(4, 2, LENGTH), torch.tensor([0, 0.25, -0.25, 0.5]) * torch.pi
    )
    torch.testing.assert_close(still, voice)
    torch.testing.assert_close(left, torch.stack([2**0.5 * voice[0], torch.zeros(LENGTH)]), atol=1e-5, rtol=0)
    torch.testing.assert_close(right, left.flip(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(opposite, torch.stack([voice[0], -voice[0]]), atol=1e-5, rtol=0)


def test_turning_keeps_the_energy_of_any_stem():
    stems = torch.randn(8, 2, LENGTH)
    turned = rotate_stereo(stems, torch.linspace(-1.5, 1.5, 8))
    torch.testing.assert_close(turned.square().sum((1, 2)), stems.square().sum((1, 2)))


class Chirp:
    """A track with a 1000 Hz sine on both sides, of which only half the band is real."""

    name, group, seconds, source_rate, stems = "chirp", "set", 60.0, 8000, ("vocals", "accompaniment")

    def read(self, side: str, start: float, seconds: float, sample_rate: int) -> torch.Tensor:
        return sine(1000, round(seconds * sample_rate))

    def loudness(self, side: str, sample_rate: int) -> float:
        return 0.7


def pitch(waveform: torch.Tensor) -> float:
    window = torch.hann_window(LENGTH)
    return float(torch.fft.rfft(waveform[0] * window).abs().argmax()) * RATE / LENGTH


def test_a_song_keeps_its_stems_together_and_its_trusted_band_follows_the_speed():
    overrides = f"audio.sample_rate={RATE} data.remix_probability=0 data.silent_vocals=0 data.speed_semitones=3"
    segments = Segments([Chirp()], load_config(None, overrides.split()), 40)
    ratios = []
    for i in range(40):
        item = segments[i]
        ratio = pitch(item["vocals"]) / 1000
        assert pitch(item["accompaniment"]) / 1000 == pytest.approx(ratio, abs=2e-3)
        assert float(item["source_rate"]) == pytest.approx(8000 * ratio, rel=2e-3)
        ratios.append(12 * np.log2(ratio))
    assert max(np.abs(ratios)) < 3.1 and min(ratios) < -2 and max(ratios) > 2


def test_a_room_adds_a_tail_that_decays_and_differs_between_the_channels():
    click = torch.zeros(2, LENGTH)
    click[:, 0] = 1.0
    for seed in range(20):
        heard = altered(click, room=Room.draw(np.random.default_rng(seed))).double()
        assert float((heard[:, 0] - 1).abs().max()) < 0.3  # the sound itself stays
        tail = heard[:, 1:]
        level = 10 * torch.log10(tail.square().sum(dim=1))
        assert (level > -26).all() and (level < -5).all()
        early, late = tail[:, : RATE // 50].square().mean(), tail[:, RATE : RATE + RATE // 50].square().mean()
        assert 10 * torch.log10(early / (late + 1e-20)) > 50  # 60 dB within a second
        alike = float((tail[0] * tail[1]).sum() / tail.norm(dim=1).prod())
        assert abs(alike) < 0.15
