"""Validation: what decides which weights are best, and that it decides nothing else."""

from __future__ import annotations

import csv
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from trainers import make, run

import diffvocsep.training.run as run_module
import diffvocsep.training.trainer as trainer_module
from diffvocsep.config import load_config
from diffvocsep.data import dev_tracks, train_tracks
from diffvocsep.separator import Separator
from diffvocsep.training.validation import Validation, dev_clips, validate
from diffvocsep.util.errors import UserError


def test_best_is_replaced_by_better_only(tmp_path, monkeypatch):
    nan = math.nan  # the worst score, wherever it stands among others
    scores = iter([[1.0, 1.0], [3.0, 5.0, 4.0], [2.0], [nan], [4.5], [4.4], [4.6, nan, 9.0], [nan, 9.0, nan]])

    def scored(*_) -> Validation:
        values = next(scores)
        return Validation(values, values)

    monkeypatch.setattr(trainer_module, "validate", scored)
    steps = []

    def saved(path: Path, state: dict) -> None:
        if path.name == "best.pt":
            steps.append((state["step"], state["best_sdr"]))

    monkeypatch.setattr(run_module, "save_checkpoint", saved)
    run(tmp_path, "train.val_every_steps=1", "train.max_steps=8")
    assert steps == [(1, 1.0), (2, 4.0), (5, 4.5), (7, 4.6)]  # the median of the clips
    (path,) = tmp_path.glob("tb/*/history.csv")
    table = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    drawn = [(row["sdr_median"], row["sdr_best"]) for row in table if row["sdr_best"]]
    expected = [("1", 1), ("4", 4), ("2", 4), ("", 4), ("4.5", 4.5), ("4.4", 4.5), ("4.6", 4.6), ("", 4.6)]
    assert [(median, float(best)) for median, best in drawn] == expected, "what is drawn is what decides"


def test_validation_is_the_sdr_of_the_averaged_network_s_separation(tmp_path, capsys):
    trainer = run(tmp_path, "train.lr=0.1", "train.max_steps=3")
    reported = float(re.findall(r"step 3: .* (-?\d+\.\d+) dB", capsys.readouterr().out)[0])
    config, rate = trainer.config, 8000

    def scores(separator: Separator) -> list[float]:
        values = []
        for track in (dev_tracks(config)[0], dev_tracks(config)[16]):  # of 32, two far apart
            vocals, rest = (track.read(side, 0.5, 1.0, rate).mean(0, keepdim=True) for side in track.stems)
            error = separator.separate(vocals + rest, rate)[0].numpy() - vocals.numpy()
            values.append(10 * np.log10(np.sum(vocals.numpy() ** 2.0) / np.sum(error**2.0)))
        return values

    assert reported == pytest.approx(
        np.median(scores(Separator.from_checkpoint(tmp_path / "ck/last.pt", "cpu"))), abs=0.006
    )
    assert abs(reported - np.median(scores(Separator(trainer.model, config)))) > 0.02, "the test cannot tell them apart"


def test_one_step_is_scored_beside_the_configured_steps(tmp_path):
    trainer = make(tmp_path, "diffusion.ddim_steps=4")
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    scored = {}
    for steps in (1, 4):
        config = load_config(None, [f"diffusion.ddim_steps={steps}"], trainer.config)
        scored[steps] = validate(Separator(trainer.model, config), trainer.clips, 1, lambda: False)
    assert scored[1].scores == scored[1].one_step == scored[4].one_step != scored[4].scores
    ((mixture, vocals, truth),) = scored[4].examples
    assert torch.equal(truth, trainer.clips[0][0]) and torch.equal(mixture, sum(trainer.clips[0]))
    assert scored[4].scores[0] == pytest.approx(
        float(10 * torch.log10(truth.square().sum() / (truth - vocals).square().sum())), abs=1e-4
    )


def test_a_validation_is_the_same_every_time_and_touches_no_random_stream(tmp_path):
    trainer = make(tmp_path, "diffusion.ddim_steps=2", "diffusion.eta=1")
    monitored = []

    class Silent:
        flush = staticmethod(lambda: None)
        log_validation = staticmethod(lambda step, previous, result, best, progress: monitored.append(result.scores))

    streams = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for step in (1, 2):
        trainer.progress.step = step
        trainer._validate(Silent)
    assert monitored[0] == monitored[1]
    assert torch.equal(torch.get_rng_state(), streams[0]) and random.getstate() == streams[2]
    assert np.array_equal(np.random.get_state()[1], streams[1])


def test_dev_clips_are_neither_training_nor_test_songs(tmp_path):
    from diffvocsep.data.synthetic.tracks import synthetic_tracks

    config = make(tmp_path).config

    def songs(tracks) -> set[bytes]:
        return {track.read("vocals", 0, 2, 8000).numpy().tobytes() for track in tracks}

    train, dev, test = songs(train_tracks(config)), songs(dev_tracks(config)), songs(synthetic_tracks(config, "test"))
    assert len(dev) == 32 and not dev & train and not dev & test


def test_clips_without_vocals_are_left_out(tmp_path, undisturbed):
    config = undisturbed.config
    tracks = dev_tracks(config)[:3]
    tracks[0].read("vocals", 0, 1, 8000)
    tracks[0]._samples["vocals"][:] = 0
    assert len(dev_clips(tracks, load_config(None, ["train.val_batches=3"], config))) == 2
    for silent in ([], tracks[:1]):
        with pytest.raises(UserError, match=r"no dev track has .* vocals; see data\.dev_root"):
            dev_clips(silent, config)
