"""Two processes share the tests; each, and each program that they start, computes on one thread and hears Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from diffvocsep.training.trainer import Trainer

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell; programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small tensors: threads only cost time, and what is compared bit by bit must not depend on their number."""
    import torch  # here, after the environment is set

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def picture() -> Iterator[Callable[..., np.ndarray]]:
    """The picture that a validation shows takes a second to draw, and a tiny run has eight: outside the monitor's own
    tests, which ask for it here, a dot stands in its place."""
    import diffvocsep.training.monitor as monitor

    drawn = monitor.picture
    monitor.picture = lambda *_: np.zeros((1, 1, 3), np.uint8)
    yield drawn
    monitor.picture = drawn


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Trainer:
    """The tiny training run of `trainers.py`, from its beginning to its end; do not change it."""
    from trainers import run

    return run(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A checkpoint of a tiny network with random weights."""
    from tiny import random_unet, tiny_config

    from diffvocsep.checkpoint import save_checkpoint
    from diffvocsep.config import to_dict

    config = tiny_config()
    path = tmp_path_factory.mktemp("model") / "tiny.pt"
    save_checkpoint(path, {"ema": random_unet(config).state_dict(), "config": to_dict(config), "step": 1})
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working directory with one song, `song.wav`."""
    from tiny import RATE, song

    from diffvocsep.audio import write

    monkeypatch.chdir(tmp_path)
    write("song.wav", 0.3 * song(0.6), RATE)
    return tmp_path


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are saved."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig

    def savefig(self, *args, **kwargs):
        figures.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures
