"""Random numbers as a function of where they are used."""

from __future__ import annotations

import pytest
import torch

from diffvocsep.util.rng import NOISE_BLOCK, frame_noise, generator, normal


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
