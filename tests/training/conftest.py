"""What the tests of training share."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

import diffvocsep.training.trainer as trainer_module
from diffvocsep.training.trainer import Trainer


@pytest.fixture
def clock(monkeypatch) -> Callable[[float], None]:
    """Every step takes ten seconds of the trainer's time, on a busy machine, too, and nothing else takes any; called,
    it lets seconds pass."""
    now, gradients = [0.0], Trainer._gradients

    def wait(seconds: float) -> None:
        now[0] += seconds

    def timed(self, batches: list) -> tuple:
        wait(10)
        return gradients(self, batches)

    monkeypatch.setattr(Trainer, "_gradients", timed)
    trainers_time = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    monkeypatch.setattr(trainer_module, "time", trainers_time)
    return wait
