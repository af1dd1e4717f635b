"""An offset and what lies below 20 Hz: found and taken away, in streams of any blocks."""

from __future__ import annotations

import pytest
import torch
from tiny import db, song

from diffvocsep.audio.rumble import Rumble

RATE = 8000


def without(waveform: torch.Tensor, size: int = 10**6) -> torch.Tensor:
    rumble, blocks = Rumble(RATE), waveform.split(size, dim=-1)
    assert torch.equal(torch.cat(list(rumble.measure(blocks)), dim=-1), waveform)
    return torch.cat(list(rumble.remove(blocks)), dim=-1)


def sine(hz: float, seconds: float = 90) -> torch.Tensor:
    return torch.cos(2 * torch.pi * hz * torch.arange(round(seconds * RATE)).double() / RATE + 1).float()[None]


@pytest.mark.parametrize("hz", [3, 9, 14.9])
def test_a_rumble_is_gone_and_the_song_above_it_whole(hz):
    """Longer than a block. At the ends, the mirror image is not all of a rumble."""
    heard = sine(440)
    rest = without(heard + sine(hz)) - heard
    assert db(rest, sine(hz)) < -35 and db(rest[:, RATE:-RATE], sine(hz)[:, RATE:-RATE]) < -75


@pytest.mark.parametrize("hz", [25.1, 41, 1000])
def test_what_is_heard_stays_to_the_bit(hz):
    assert torch.equal(without(sine(hz)), sine(hz))


def test_an_offset_is_gone_to_the_edges_in_each_channel():
    heard = torch.cat([sine(440, 3), sine(300, 3)])
    rest = without(heard + torch.tensor([[0.5], [-0.01]])) - heard
    assert rest.abs().max() < 1e-3


def test_a_little_of_either_stays_to_the_bit():
    """Of voices that were recorded with an offset, it is a part; 0.15 of the energy is the limit."""
    heard = sine(440, 3)
    for added in (0.28, 0.4 * sine(5, 3)):  # 0.136 and 0.138 of the energy
        assert torch.equal(without(heard + added), heard + added)
    for added in (0.31, 0.44 * sine(5, 3)):  # 0.161 and 0.162
        assert db(without(heard + added) - heard, heard) < -35


@pytest.mark.parametrize("length", [1, 2, 399, 700, 5000, 70_000])
def test_blocks_of_any_size_are_one_song(length):
    waveform = (song(9.0) + 0.5 + 0.5 * sine(5, 9.0))[:, :length]
    whole = without(waveform)
    assert whole.shape == waveform.shape and torch.equal(whole, waveform) == (length < RATE / 20)
    for size in (1, 997):
        if length / size < 5000:
            torch.testing.assert_close(without(waveform, size), whole, atol=1e-6, rtol=0)


def test_silence_in_a_song_with_an_offset_stays_silent():
    waveform = song(3.0) + 0.5
    for added in (0, 0.5 * sine(5, 3.0)):
        mixture = waveform + added
        mixture[:, RATE : 2 * RATE] = 0
        rest = without(mixture)
        assert not rest[:, RATE + 40 : 2 * RATE - 40].any() and db(rest, mixture) < 0


def test_silence_is_left_alone():
    silence = torch.zeros(2, RATE)
    assert torch.equal(without(silence), silence) and Rumble(RATE).is_significant() == (False, False)
