"""Tiny training runs for the tests of the trainer: what they are, how they are started, and what makes two the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from diffvocsep.config import Config, load_config, save_config
from diffvocsep.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
TINY = """audio.sample_rate=8000 audio.channels=1 audio.n_fft=512 audio.hop_length=128 audio.win_length=512
    audio.bandwidth=0 data.synthetic_songs=2 data.synthetic_seconds=2 data.segment_seconds=0.5
    model.base_channels=4 train.batch_size=2 train.max_steps=6 train.steps_per_epoch=3 train.val_every_steps=2
    train.val_batches=2 train.val_seconds=1 train.warmup_steps=2 train.lr=0.002 train.amp=none log.every_steps=1"""


def tiny(folder: Path, *overrides: str) -> Config:
    logs = [f"log.checkpoint_dir='{(folder / 'ck').as_posix()}'", f"log.tb_log_dir='{(folder / 'tb').as_posix()}'"]
    return load_config(None, [*TINY.split(), *logs, *overrides])


def make(folder: Path, *overrides: str, resume: str = "none") -> Trainer:
    return Trainer(tiny(folder, *overrides), CPU, resume)


def run(folder: Path, *overrides: str, resume: str = "none") -> Trainer:
    trainer = make(folder, *overrides, resume=resume)
    assert trainer.run() == 0
    return trainer


def flat(value: object, name: str = "") -> dict[str, object]:
    """A nested state as one dictionary of leaves."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{name}/{key}").items()}
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)), name)
    return {name: value}


def assert_same_state(one: dict, other: dict) -> None:
    """Weights, their average and the optimizer, bit by bit."""
    for part in ("model", "ema", "optimizer", "step", "best_sdr"):
        first, second = flat(one[part]), flat(other[part])
        assert first.keys() == second.keys()
        for name, value in first.items():
            equal = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
            assert equal, f"{part}{name}"


def assert_same_run(one: Trainer, other: Trainer) -> None:
    assert_same_state(one.state(), other.state())


def start(folder: Path, *arguments: str, script: Path = ROOT / "train.py", **environment: str) -> subprocess.Popen:
    """train.py as a real process, in `folder`."""
    save_config(tiny(folder), folder / "tiny.yaml")
    command = [sys.executable, str(script), "--config", "tiny.yaml", "--device", "cpu", *arguments]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | environment, start_new_session=True,
    )  # fmt: skip


def at_step(monkeypatch, step: int, action) -> None:
    """Call `action` when a trainer begins the step that follows `step` steps."""
    optimize = Trainer.optimize

    def disturbed(self, batches):
        if self.progress.step == step:
            action()
        return optimize(self, batches)

    monkeypatch.setattr(Trainer, "optimize", disturbed)
