"""What ends a run from outside the program: it ends at once, in one sentence, and the last checkpoint stays whole."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from trainers import CPU, ROOT, assert_same_run, at_step, make, run, tiny

from diffvocsep.checkpoint import load_checkpoint
from diffvocsep.config import save_config
from diffvocsep.data import train_tracks
from diffvocsep.data.loader import EXIT_BATCH_NOT_SENT, load_segments
from diffvocsep.data.mixing import Segments
from diffvocsep.training.monitor import Monitor
from diffvocsep.util import cli
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
        pytest.param(lambda: os.kill(os.getpid(), signal.SIGBUS), "/dev/shm", marks=pytest.mark.slow),
        pytest.param(lambda: os._exit(EXIT_BATCH_NOT_SENT), "/dev/shm", marks=pytest.mark.slow),
        pytest.param(lambda: os._exit(9), "ended with code 9", marks=pytest.mark.slow),
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


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="POSIX signals")
def test_loaders_are_ended_though_the_program_watches_its_children(tmp_path):
    """As torch does from the first DataLoader of a program on: its handler raises for workers that were killed."""

    def handler(*_: object) -> None:
        raise RuntimeError("a DataLoader worker is killed by signal: Killed.")

    batches, before = load(tmp_path, 2), signal.signal(signal.SIGCHLD, handler)
    try:
        batches.close()
        assert not active_children() and signal.getsignal(signal.SIGCHLD) is handler
    finally:
        signal.signal(signal.SIGCHLD, before)


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


# ---- the disk, the memory ------------------------------------------------------------------------------------------


def train_py(folder: Path, capsys: pytest.CaptureFixture) -> tuple[int, list[str]]:
    """train.py in this process: its exit code, and what stands on stderr without the bars."""
    import train

    save_config(tiny(folder), folder / "tiny.yaml")
    with pytest.raises(SystemExit) as ended:
        cli.main(lambda: train.run(["--config", str(folder / "tiny.yaml"), "--device", "cpu"]))
    written = capsys.readouterr().err
    assert "Traceback" not in written and "Exception in thread" not in written
    return ended.value.code, [line for line in written.splitlines() if "error: " in line]


@pytest.fixture
def full_disk():
    """Fill the disk: no file of this process grows beyond so many bytes."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(("size", "where"), [(20_000, "pt"), pytest.param(200, "", marks=pytest.mark.slow)])
def test_a_full_disk_ends_a_run_in_one_sentence_with_a_whole_checkpoint(
    tmp_path, monkeypatch, capsys, full_disk, undisturbed, size, where
):
    """Whether a checkpoint or a curve is the first that does not fit."""
    limits = []
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: limits.append(full_disk(size)))
        code, said = train_py(tmp_path, capsys)
    full_disk(-1)
    assert limits and code == 1 and len(said) == 1 and "no file may grow further" in said[0] and "ulimit -f" in said[0]
    assert where in said[0] and load_checkpoint(tmp_path / "ck" / "last.pt")["step"] in (2, 3)
    assert not list((tmp_path / "ck").glob(".*.part*"))
    assert_same_run(run(tmp_path, resume="auto"), undisturbed)


@pytest.mark.parametrize("place", ["step", pytest.param("log_validation", marks=pytest.mark.slow)])
def test_curves_that_cannot_be_written_lose_no_step(tmp_path, monkeypatch, capsys, undisturbed, place):
    """Their disk may be full where that of the checkpoints is not. A score that is not shown does not count yet."""

    def fail(self: Monitor, step: int, *rest: object) -> None:
        if step == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "events")
        write(self, step, *rest)

    write = getattr(Monitor, place)
    with monkeypatch.context() as patch:
        patch.setattr(Monitor, place, fail)
        code, said = train_py(tmp_path, capsys)
    assert code == 1 and len(said) == 1 and "the disk is full at 'events'" in said[0]
    saved = load_checkpoint(tmp_path / "ck" / "last.pt")
    best = load_checkpoint(tmp_path / "ck" / "best.pt")
    assert saved["step"] == 4 and saved["validated"] < 4 and saved["best_sdr"] == best["best_sdr"]
    assert_same_run(run(tmp_path, resume="auto"), undisturbed)


def test_too_little_memory_ends_a_run_in_one_sentence(tmp_path, monkeypatch, capsys, undisturbed):
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: torch.empty(1 << 55))
        code, said = train_py(tmp_path, capsys)
    assert code == 1 and len(said) == 1 and "the memory of the computer is full" in said[0]
    assert "train.batch_size" in said[0] and load_checkpoint(tmp_path / "ck" / "last.pt")["step"] == 3
    assert_same_run(run(tmp_path, resume="auto"), undisturbed)


# ---- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param("SIGTERM", marks=pytest.mark.slow), "SIGHUP"])
def test_a_polite_kill_and_a_closed_terminal_save_what_there_is(tmp_path, monkeypatch, undisturbed, name):
    if not hasattr(signal, name):
        pytest.skip("POSIX signals")
    before = signal.signal(getattr(signal, name), signal.SIG_DFL)  # under nohup, SIGHUP is ignored, and stays so
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: signal.raise_signal(getattr(signal, name)))
        assert make(tmp_path).run() == 130
    signal.signal(getattr(signal, name), before)
    assert load_checkpoint(tmp_path / "ck" / "last.pt")["step"] == 4
    assert_same_run(run(tmp_path, resume="auto"), undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "forkpty"), reason="POSIX terminals")
def test_a_terminal_that_is_closed_saves_what_there_is(tmp_path):
    save_config(tiny(tmp_path, "train.max_steps=100000", "train.val_every_steps=100000"), tmp_path / "tiny.yaml")
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(tmp_path / "tiny.yaml"), "--device", "cpu"]
    process, terminal = os.forkpty()
    if process == 0:
        os.execvpe(command[0], command, os.environ | {"OMP_NUM_THREADS": "1"})
    written = b""
    while b"step 3: median SDR" not in written:
        written += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert load_checkpoint(tmp_path / "ck" / "last.pt")["step"] >= 1


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX signals")
@pytest.mark.parametrize(
    ("script", "imported", "name"),
    [
        ("train.py", "tensorboard", "SIGINT"),
        pytest.param("train.py", "tensorboard", "SIGTERM", marks=pytest.mark.slow),
        pytest.param("train_tpu.py", "torch_xla", "SIGINT", marks=pytest.mark.slow),
        pytest.param("train_tpu.py", "torch_xla", "SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_a_signal_during_the_start_is_no_traceback(tmp_path, script, imported, name):
    """In the middle of an import, which might take a KeyboardInterrupt for an error of its own."""
    (tmp_path / imported).mkdir()
    (tmp_path / imported / "__init__.py").write_text(
        f"import os, signal\ntry:\n    os.kill(os.getpid(), signal.{name})\nexcept BaseException:\n    pass\n",
        encoding="utf-8",
    )
    save_config(tiny(tmp_path), tmp_path / "tiny.yaml")
    done = subprocess.run(
        [sys.executable, str(ROOT / script), "--config", "tiny.yaml"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PJRT_DEVICE": "CPU"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 130 and "Traceback" not in done.stderr and done.stderr.endswith("interrupted\n")
    assert not (tmp_path / "ck").exists()
