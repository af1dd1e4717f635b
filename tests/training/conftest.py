"""What the tests of training share."""

from __future__ import annotations

import pytest
import torch

from diffvocsep.training.trainer import Trainer


@pytest.fixture
def clock(monkeypatch) -> None:
    """Every step takes ten seconds of the trainer's time, on a busy machine, too."""
    gradients = Trainer._gradients

    def timed(self, batches: list) -> tuple:
        terms, stop, seconds = gradients(self, batches)
        return terms, stop, torch.full_like(seconds, 10.0)

    monkeypatch.setattr(Trainer, "_gradients", timed)
