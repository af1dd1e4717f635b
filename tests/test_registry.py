"""A part plugs in by one line in registry.py: config, training, separation and scoring know it then."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import RATE, Stub, song, tiny_config
from torch import Tensor, nn
from trainers import CPU, tiny

import evaluate
from diffvocsep import registry
from diffvocsep.config import Config, ignored_settings, load_config
from diffvocsep.data.synthetic.tracks import synthetic_tracks
from diffvocsep.data.tracks import Track
from diffvocsep.evaluation.sweep import Setting, parse_grid
from diffvocsep.separator import Separator
from diffvocsep.spectrogram import ComplexSpectrogram
from diffvocsep.training.trainer import Trainer
from diffvocsep.util.errors import UserError

asked: list[str] = []  # the splits that the toy dataset was asked for


class ToyNetwork(nn.Module):
    """One gain for the mixture."""

    time_stride = 4

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x_t: Tensor, mixture: Tensor, t: Tensor, guessed: Tensor) -> Tensor:
        return self.gain * mixture


class ToyRepresentation(ComplexSpectrogram):
    """Twice as large as the complex one."""

    def encode(self, spectrum: Tensor, statistics: Tensor) -> Tensor:
        return 2 * super().encode(spectrum, statistics)

    def decode(self, x: Tensor, statistics: Tensor, mixture: Tensor) -> Tensor:
        return super().decode(x / 2, statistics, mixture)


def toy_sampler(denoise, x_T: Tensor, alphas_cumprod: Tensor, schedule, noise, eta: float) -> Tensor:
    """Adds `eta` to the x_0 of the first step, and takes no other."""
    return denoise(x_T, schedule[0]) + eta


def toy_dataset(config: Config, split: str) -> list[Track]:
    asked.append(split)
    return synthetic_tracks(config, split)[:2]


def toy_songs(root, split: str) -> list[Track]:
    return synthetic_tracks(Config(), "test")[:1]


@pytest.fixture
def toys(monkeypatch) -> list[str]:
    """Registers a toy of every kind; returns the settings that choose them."""
    lines = {"NETWORKS": "ToyNetwork", "REPRESENTATIONS": "ToyRepresentation", "DATASETS": "toy_dataset",
             "TEST_SETS": "toy_songs"}  # fmt: skip
    for kind, name in lines.items():
        monkeypatch.setitem(getattr(registry, kind), "toy", f"test_registry:{name}")
    monkeypatch.setitem(registry.SAMPLERS, "toy", registry.Sampler("test_registry:toy_sampler", noise="eta"))
    asked.clear()
    return ["model.network=toy", "audio.representation=toy", "diffusion.sampler=toy", "diffusion.ddim_steps=2",
            "data.dataset=toy"]  # fmt: skip


def test_a_toy_of_every_kind_trains_and_separates(toys, tmp_path):
    trainer = Trainer(tiny(tmp_path, *toys, "train.max_steps=2"), CPU, "none")
    assert trainer.run() == 0 and asked == ["dev", "train"]
    assert trainer.model.gain.item() != 0.5  # it has learnt something

    separator = Separator.from_checkpoint(tmp_path / "ck" / "last.pt", "cpu")
    assert type(separator.model) is ToyNetwork and type(separator.frontend.representation) is ToyRepresentation
    mixture = 0.1 * torch.randn(1, 8000)
    vocals, accompaniment = separator.separate(mixture, 8000)
    torch.testing.assert_close(vocals + accompaniment, mixture)
    other, _ = separator.separate(mixture, 8000, eta=0.5)
    assert not torch.allclose(vocals, other)  # the sampler hears its eta


def test_a_toy_test_set_is_scored(toys, tmp_path, capsys):
    Trainer(tiny(tmp_path, *toys, "train.max_steps=1"), CPU, "none").run()
    arguments = ["--model_path", str(tmp_path / "ck" / "last.pt"), "--dataset", "toy", "--root", str(tmp_path)]
    assert evaluate.run([*arguments, "--no-museval", "--jobs", "1", "--device", "cpu"]) == 0
    assert "vocals, dB, 1 clips" in capsys.readouterr().out


def test_a_toy_dataset_and_sampler_are_told_where_songs_lie_and_how_much_noise(toys):
    assert ignored_settings(load_config(None, [*toys, "data.root=songs", "diffusion.eta=0.5"])) == []


NOISY_AT_LAST = registry.Sampler("test_registry:noisy_at_last", noise="always")


def noisy_at_last(denoise, x_T: Tensor, alphas_cumprod: Tensor, schedule, noise, eta: float) -> Tensor:
    *_, x_0 = (denoise(x_T, t) for t in schedule)
    return x_0 + 0 * noise(len(schedule) - 1)


def test_a_sampler_says_itself_whether_it_draws_a_sample(monkeypatch):
    """Not the moment when it first takes noise: before it, x_t belongs to a sample, too."""
    told = []

    class Told(Stub):
        def forward(self, x_t, mixture, t, guessed):
            told.append(guessed is not None)
            return mixture

    for noise in ("always", "never"):
        monkeypatch.setitem(registry.SAMPLERS, "toy", replace(NOISY_AT_LAST, noise=noise))
        separator = Separator(Told(None), tiny_config("diffusion.sampler=toy", "diffusion.ddim_steps=3"))
        separator.separate(song(0.1), RATE)
    assert told == [False, False, False, False, True, True]


@pytest.mark.parametrize(("noise", "etas"), [("always", [0.0]), ("never", [0.0]), ("eta", [0.0, 0.5])])
def test_a_sampler_says_itself_whether_it_reads_eta(monkeypatch, noise, etas):
    monkeypatch.setitem(registry.SAMPLERS, "toy", replace(NOISY_AT_LAST, noise=noise))
    assert parse_grid("steps=4 sampler=toy eta=0,0.5") == [Setting("toy", 4, eta) for eta in etas]
    given = ["diffusion.sampler=toy", "diffusion.ddim_steps=4", "diffusion.eta=0.5"]
    assert len(ignored_settings(load_config(None, given))) == (noise != "eta")


def test_refinement_is_not_trained_for_a_sampler_that_adds_noise(monkeypatch, tmp_path):
    monkeypatch.setitem(registry.SAMPLERS, "toy", NOISY_AT_LAST)
    refine = ("train.parts=refine", "model.refine_rank=2", "train.refine_share=1")
    with pytest.raises(UserError, match="validation has none"):
        Trainer(tiny(tmp_path, *refine, "diffusion.ddim_steps=2", "diffusion.sampler=toy"), CPU, "none")
