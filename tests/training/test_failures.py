"""What ends a run from outside the program: it ends at once, in one sentence, and the last checkpoint stays whole."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from multiprocessing import active_children

import pytest
import torch
from trainers import CPU, make, tiny

from diffvocsep.data import train_tracks
from diffvocsep.data.loader import STUCK, load_segments
from diffvocsep.data.mixing import Segments
from diffvocsep.util.errors import UserError, WorkFailed

# ---- loaders -------------------------------------------------------------------------------------------------------


def local_error() -> Exception:
    class Local(Exception):  # no other process can import it
        pass

    return Local("two\nlines")


ERRORS: dict[str, tuple[Callable[[], Exception], type, str]] = {
    "runtime": (lambda: RuntimeError("not expected"), WorkFailed, "segment 4 could not be made: RuntimeError: not exp"),
    "system": (lambda: OSError(5, "Input/output error", "a.wav"), WorkFailed, "Input/output error: 'a.wav'"),
    "memory": (MemoryError, WorkFailed, "MemoryError"),
    "key": (lambda: KeyError("vocals"), WorkFailed, "KeyError: 'vocals'"),
    "no text takes its place": (lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), WorkFailed, "UnicodeDecode"),
    "local": (local_error, WorkFailed, "Local: two lines"),
    "input": (lambda: UserError("'a.wav' is damaged: export it again"), UserError, "^'a.wav' is damaged: export it ag"),
}


def broken(monkeypatch, action: Callable[[], None]) -> None:
    """Let `action` happen where segment 4 would be made."""
    real = Segments.__getitem__

    def getitem(self, index: int) -> dict[str, torch.Tensor]:
        if index == 4:
            action()
        return real(self, index)

    monkeypatch.setattr(Segments, "__getitem__", getitem)


def load(folder, workers: int):
    config = tiny(folder, f"data.workers={workers}")
    return load_segments(Segments(train_tracks(config), config, 12), 0, CPU)


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_where_segments_are_made_is_one_sentence(tmp_path, monkeypatch, workers, kind):
    make_error, expected, said = ERRORS[kind]

    def fail() -> None:
        raise make_error()

    broken(monkeypatch, fail)
    batches, began = load(tmp_path, workers), time.monotonic()
    with pytest.raises(expected, match=said) as error:
        list(batches)
    batches.close()
    assert time.monotonic() - began < 10 and not active_children()
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed, perhaps for want of memory"),
        (lambda: os.kill(os.getpid(), signal.SIGBUS), "/dev/shm"),
        (lambda: os._exit(STUCK), "/dev/shm"),
        (lambda: os._exit(9), "ended with code 9"),
    ],
)
def test_a_loader_that_is_gone_is_noticed_within_ten_seconds(tmp_path, monkeypatch, ending, said):
    broken(monkeypatch, ending)
    batches, began = load(tmp_path, 2), time.monotonic()
    with pytest.raises(WorkFailed, match=said):
        list(batches)
    batches.close()
    assert time.monotonic() - began < 12 and not active_children()


def test_a_batch_that_cannot_be_handed_over_ends_its_loader(tmp_path, monkeypatch):
    """multiprocessing would drop it, and the main process wait for ever."""
    real = Segments.__getitem__
    monkeypatch.setattr(Segments, "__getitem__", lambda self, index: real(self, index) | {"name": lambda: 1})
    monkeypatch.setattr("torch.utils.data._utils.collate.default_collate_fn_map", {})
    batches = load(tmp_path, 1)
    with pytest.raises(WorkFailed):
        list(batches)
    batches.close()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_a_trainer_leaves_no_loader_behind_whatever_ends_it(tmp_path, monkeypatch):
    """Not even one that hangs."""
    broken(monkeypatch, lambda: time.sleep(600))
    trainer = make(tmp_path, "data.workers=2", "train.max_steps=4")
    optimize = trainer.optimize

    def fail(batches: list) -> dict:
        optimize(batches)
        raise RuntimeError("power cut")

    trainer.optimize, began = fail, time.monotonic()
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.run()
    assert time.monotonic() - began < 10 and not active_children()
