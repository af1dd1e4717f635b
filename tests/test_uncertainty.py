"""The spread of K counterfactuals: as many numbers as were promised, equal to those of K separate draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_inference import assert_one_sentence, names
from test_inference import call as call  # fixtures
from test_inference import folder as folder
from test_inference import model as model
from tiny import RATE, nobody_sings, random_separator, song, stubbed

from diffvocsep.audio import read
from diffvocsep.uncertainty import Spread, load_spread, pool
from diffvocsep.util.errors import UserError

STEPS = ("diffusion.ddim_steps=8", "diffusion.samples=4", "diffusion.sampler=ddpm")


@pytest.fixture(scope="module")
def separated():
    separator = random_separator(*STEPS)
    spread = Spread(separator.config.audio)
    mixture = 0.3 * song(0.9)  # four chunks
    vocals, _ = separator.separate(mixture, RATE, spread=spread)
    return separator, mixture, vocals, spread.values()


def test_the_spread_changes_nothing(separated):
    separator, mixture, vocals, _ = separated
    assert torch.equal(separator.separate(mixture, RATE)[0], vocals)


def test_mixture_and_vocals_lie_where_time_and_frequency_say(separated):
    separator, mixture, _, values = separated
    audio = separator.config.audio
    expected = pool(separator.frontend.stft(mixture[None])[0].abs().square()).sqrt().numpy()
    assert values["mixture"].shape == expected.shape == (len(values["frequency"]), len(values["time"]))
    assert np.abs(values["mixture"] - expected)[:, :-1].max() < 2e-3 * expected.max()
    assert values["frequency"][1] - values["frequency"][0] == pytest.approx(4 * RATE / audio.n_fft)
    assert values["time"][1] - values["time"][0] == pytest.approx(2 * audio.hop_length / RATE)
    assert values["time"][-1] == pytest.approx(0.9, abs=0.01) and values["spread"].max() > 0


def test_the_spread_is_the_standard_deviation_of_the_draws(monkeypatch):
    """A sampler whose draws are known: it returns the noise it starts from, whose deviation is 1 in the represented
    space; with compression 1 that space is linear."""
    monkeypatch.setattr("diffvocsep.counterfactual.sample", lambda sampler, denoise, x_T, *rest: x_T)
    separator = stubbed(nobody_sings, "audio.compression=1.0", *STEPS[:1], "diffusion.samples=32")
    spread, mixture = Spread(separator.config.audio), 0.3 * song(0.9)
    separator.separate(mixture, RATE, spread=spread)
    statistics = separator.frontend.representation.statistics(separator.frontend.stft(mixture[None]))
    expected = float(separator.frontend.representation.level(statistics))  # E|X|^2 of unit noise, re and im each over 2
    found = spread.values()["spread"]
    assert np.sqrt((found**2).mean()) == pytest.approx(expected, rel=0.1)
    assert found[2:-2].std() < 0.2 * found.mean()


def test_draws_that_are_the_same_have_no_spread():
    separator = stubbed(nobody_sings, *STEPS)
    spread = Spread(separator.config.audio)
    separator.separate(0.3 * song(0.6), RATE, spread=spread)
    assert spread.values()["spread"].max() < 1e-3 * spread.values()["mixture"].max()


@pytest.mark.parametrize(("options", "word"), [(dict(steps=1), "hardly differ"), (dict(samples=1), "--samples")])
def test_a_spread_that_says_nothing_is_refused(options, word):
    separator = random_separator(*STEPS)
    with pytest.raises(UserError, match=word):
        separator.separate(song(0.3), RATE, spread=Spread(separator.config.audio), **options)


# --- inference.py -------------------------------------------------------------------------------------------------


def test_numbers_and_picture_of_a_song(call, folder):
    many = ["--samples", "3", "--sampler", "ddpm", "--steps", "8"]
    code, _, err = call(
        "--input", "song.wav", "--output", "v.wav", *many, "--uncertainty", "u 수.npz", "--plot", "p.png"
    )
    assert (code, err) == (0, "")
    assert names(folder) == ["p.png", "song.wav", "u 수.npz", "v.wav"]
    values = load_spread(folder / "u 수.npz")
    assert values["spread"].shape == (len(values["frequency"]), len(values["time"])) and values["spread"].max() > 0
    with np.load(folder / "u 수.npz") as file:
        assert (int(file["samples"]), int(file["steps"]), str(file["sampler"])) == (3, 8, "ddpm")
    before = read("v.wav")[0]
    assert call("--input", "song.wav", "--output", "v.wav", *many)[0] == 0
    assert torch.equal(read("v.wav")[0], before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--samples", "4"], ["ddim_steps = 1", "hardly differ", "--steps 8"]),
        (["--steps", "8"], ["--samples"]),
        (["--samples", "4", "--steps", "7"], ["hardly differ"]),
    ],
)
def test_too_few_steps_or_samples_are_one_sentence(call, folder, options, words):
    arguments = ["--input", "song.wav", "--output", "v.wav", "--uncertainty", "u.npz", *options]
    assert_one_sentence(call(*arguments), *words)
    assert names(folder) == ["song.wav"]


def test_the_advice_is_accepted(call):
    arguments = ["--input", "song.wav", "--output", "v.wav", "--uncertainty", "u.npz", "--samples", "2"]
    advice = call(*arguments)[2].split("such as ")[1].split()
    assert call(*arguments, *advice)[0] == 0


def test_other_bad_requests(call, folder):
    many = ["--samples", "2", "--steps", "8"]
    assert_one_sentence(call("--input", "song.wav", "--output", "v.wav", "--uncertainty", "u.csv", *many), "u.csv")
    both = ["--input", "song.wav", "song.wav", "--output", "out"]
    assert_one_sentence(call(*both, "--uncertainty", "u.npz", *many), "one song")
    (folder / "bad.npz").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match=r"bad\.npz"):
        load_spread(folder / "bad.npz")


@pytest.mark.parametrize("spoil", ["cut", "npy"])
def test_a_file_that_is_no_spread_is_one_sentence(tmp_path, spoil):
    path = tmp_path / "spread.npz"
    with open(path, "wb") as file:
        np.savez_compressed(file, time=np.arange(1000.0)) if spoil == "cut" else np.save(file, np.zeros(3))
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="spread.npz"):
        load_spread(path)
