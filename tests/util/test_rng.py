"""Random numbers as a function of where they are used."""

from __future__ import annotations

import math

import pytest
import torch

from diffvocsep.util.rng import NOISE_BLOCK, frame_noise, generator, hashed_normal, key, normal


def test_a_frame_has_its_noise_whatever_window_it_is_drawn_in():
    whole = frame_noise(2, 5, -100, 400, 7, 0, 1)
    for first, frames in [(-100, 1), (-64, 64), (-3, 10), (0, 64), (63, 2), (64, 130), (299, 1)]:
        assert torch.equal(frame_noise(2, 5, first, frames, 7, 0, 1), whole[..., first + 100 : first + 100 + frames])


def test_noise_is_standard_normal_and_white():
    noise = frame_noise(2, 200, -500, 1000, 0, 0)
    assert noise.dtype == torch.float32
    assert noise.mean().item() == pytest.approx(0, abs=5 / noise.numel() ** 0.5)
    assert noise.var().item() == pytest.approx(1, abs=5 * (2 / noise.numel()) ** 0.5)
    for shift in [1, NOISE_BLOCK]:  # no frame and no block is like its neighbour
        correlation = (noise[..., shift:] * noise[..., :-shift]).mean().item()
        assert correlation == pytest.approx(0, abs=5 / noise.numel() ** 0.5)


def test_every_index_gives_other_noise():
    base = (3, "frames", 0, 1)
    others = [(4, "frames", 0, 1), (3, "train", 0, 1), (3, "frames", 1, 1), (3, "frames", 0, 2), (3, "frames", 1, 0)]
    reference = normal((1000,), *base)
    assert torch.equal(reference, normal((1000,), *base))
    for other in others:
        assert abs(torch.corrcoef(torch.stack([reference, normal((1000,), *other)]))[0, 1]) < 0.15


def test_the_numbers_are_the_same_on_every_machine_and_in_every_run():
    """Pinned: Python's own hash of a string would differ from process to process."""
    assert generator(5, "train", 2, 3).random() == 0.12768828570412571
    assert frame_noise(1, 1, 3, 1, 0, 0).item() == pytest.approx(1.165256, rel=1e-6)


def splitmix(state: int) -> int:
    """SplitMix64 as its authors write it, on whole numbers of any size."""
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


def test_hashed_noise_is_that_of_splitmix_and_box_and_muller():
    keys = [key(3, "noise", 5), -1, 0, 2**63 - 1]
    noise = hashed_normal(torch.tensor(keys), (2, 3))
    for k, row in zip(keys, noise.double().flatten(1).tolist(), strict=True):
        for pair in range(3):
            bits = splitmix((k + (pair + 1) * 0x9E3779B97F4A7C15) % 2**64)
            radius = math.sqrt(-2 * math.log(((bits >> 32) + 0.5) / 2**32))
            angle = 2 * math.pi * (bits % 2**24) / 2**24
            expected = [radius * math.cos(angle), radius * math.sin(angle)]
            assert row[2 * pair : 2 * pair + 2] == pytest.approx(expected, abs=1e-5)
    assert splitmix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # the first number of the published sequence of seed 0


def test_hashed_noise_is_standard_normal_white_and_a_function_of_key_and_place():
    keys = torch.tensor([key(0, "noise", i) for i in range(4)] + [7, 8])
    noise = hashed_normal(keys, (250_001,))
    assert noise.dtype == torch.float32 and torch.equal(noise[1:3, :999], hashed_normal(keys[1:3], (999,)))
    drawn = noise.double()
    assert drawn.mean(1).abs().max() < 5 / 500 and (drawn.var(1) - 1).abs().max() < 5 * 2**0.5 / 500
    assert (drawn.pow(4).mean(1) - 3).abs().max() < 5 * 96**0.5 / 500 and 4 < drawn.abs().max() < 7
    for shift in (1, 2, 3):
        assert (drawn[:, shift:] * drawn[:, :-shift]).mean(1).abs().max() < 5 / 500
    assert (torch.corrcoef(drawn) - torch.eye(6)).abs().max() < 5 / 500
