"""A part plugs in by one line in parts.py: config, training, separation and scoring know it then."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from trainers import CPU, tiny

import evaluate
from diffvocsep import parts
from diffvocsep.config import Config, ignored_settings, load_config
from diffvocsep.data.synthetic.tracks import synthetic_tracks
from diffvocsep.data.tracks import Track
from diffvocsep.separator import Separator
from diffvocsep.spectrogram import ComplexSpectrogram
from diffvocsep.training.trainer import Trainer

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
    lines = {"NETWORKS": "ToyNetwork", "REPRESENTATIONS": "ToyRepresentation", "SAMPLERS": "toy_sampler",
             "DATASETS": "toy_dataset", "TEST_SETS": "toy_songs"}  # fmt: skip
    for kind, name in lines.items():
        monkeypatch.setitem(getattr(parts, kind), "toy", f"test_parts:{name}")
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
