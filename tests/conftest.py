"""Two processes share the tests; each, and each program that they start, computes on one thread and hears Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

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


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Trainer:
    """The tiny training run of `trainers.py`, from its beginning to its end; do not change it."""
    from trainers import run

    return run(tmp_path_factory.mktemp("undisturbed"))


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
