"""Batches of training segments, wherever they are made: in this process, in loader processes, or on the GPU."""

from __future__ import annotations

import os
import re
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..util.device import move
from ..util.errors import UserError, WorkFailed
from ..util.rng import NOISE_THREADS, generator, hashed_normal, key, normal
from .device_cache import device_batches
from .mixing import Segments

T = TypeVar("T")
EXIT_BATCH_NOT_SENT = 74  # exit code of a worker whose batch cannot reach this process (EX_IOERR of sysexits.h)
WORKER_END_SECONDS = 5.0  # how long a worker may take from closing its connection to its end
SMALL_SHM = (
    "the loader processes have too little shared memory (/dev/shm): give the container more (docker run "
    "--shm-size=8g), or set data.workers=0"
)


def load_segments(segments: Segments, first: int, device: torch.device, rank: int = 0, world_size: int = 1) -> Batches:
    """Batches of `train.batch_size` segments, from the global index `first` on, for process `rank` of `world_size`.

    Processes take turns, segment by segment: no two draw the same one, and after k batches each, exactly the segments
    `first .. first + k * batch_size * world_size` are drawn. From there on, any number of processes can go on.
    """
    return Batches(segments, range(first + rank, len(segments), world_size), device)


class Batches(Iterator[dict[str, Tensor]]):
    """The segments of `indices`, batch by batch; `close` ends the processes that load them, whatever they do.

    Raises, while it is made and from `next`:
        UserError: the input is at fault, such as a damaged song.
        WorkFailed: anything else, in one sentence.
    """

    def __init__(self, segments: Segments, indices: Sequence[int], device: torch.device) -> None:
        data, self.workers = segments.config.data, set[BaseProcess]()
        if data.cache == "device":
            self.batches = device_batches(segments, indices, segments.config.train.batch_size, device)
            return
        loader = DataLoader(
            _SegmentSubset(segments, indices),
            batch_size=segments.config.train.batch_size,
            num_workers=data.workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=_init_worker,
        )
        others = set(active_children())
        try:
            with _child_handler_kept():  # `next` notices by itself where a loader is dead
                self.batches = iter(loader)
        except Exception as error:
            raise _loading_failure(error, ()) from error
        finally:
            self.workers = set(active_children()) - others

    def __next__(self) -> dict[str, Tensor]:
        try:
            return next(self.batches)
        except StopIteration:
            raise
        except (UserError, WorkFailed) as error:
            raise type(error)(_original_message(error)) from error  # from a loader it comes with its traceback
        except Exception as error:
            raise _loading_failure(error, self.workers) from error

    def close(self) -> None:
        """Kill the workers: they ignore the signals that ask for a stop (`_init_worker`), so that Python would wait for
        them for ever when it exits."""
        with _child_handler_kept():
            for worker in self.workers:
                worker.kill()
            for worker in self.workers:
                worker.join()


@contextmanager
def _child_handler_kept() -> Iterator[None]:
    """A block that begins without a handler of SIGCHLD, and leaves the one that was there: that of torch, which every
    DataLoader sets, has the main thread raise for a dead worker wherever it is, even for one killed on purpose."""
    ended = getattr(signal, "SIGCHLD", None)  # Windows has none
    handler = None if ended is None else signal.getsignal(ended)
    if handler is None or threading.current_thread() is not threading.main_thread():  # not ours to change
        yield
        return
    signal.signal(ended, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(ended, handler)


class _SegmentSubset(Dataset):
    """The segments of `indices`. An error becomes a WorkFailed of one sentence here, in the worker, for not every
    exception can be pickled."""

    def __init__(self, segments: Segments, indices: Sequence[int]) -> None:
        self.segments, self.indices = segments, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        index = self.indices[position]
        try:
            return self.segments[index]
        except UserError:
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}, line {frame.lineno}"
            raise WorkFailed(f"segment {index} could not be made: {_one_line(error)} ({where})") from error


def _one_line(error: BaseException) -> str:
    """Type and message of an error on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _original_message(error: Exception) -> str:
    """The message of an error; a DataLoader that raises one of a worker again puts the traceback before it."""
    text = str(error).strip()
    if not text.startswith("Caught "):
        return text
    return re.split(rf"^[\w.]*{type(error).__name__}: ", text, flags=re.M)[-1].strip()


def _loading_failure(error: Exception, workers: Sequence[BaseProcess]) -> WorkFailed:
    """The sentence for an `error` that is not about a segment but about the workers or their memory."""
    text = str(error)
    if workers and isinstance(error, ConnectionError | EOFError):  # a worker has just died: wait for its exit code
        wait([worker.sentinel for worker in workers], WORKER_END_SECONDS)
    codes = {worker.exitcode for worker in workers} - {None, 0}
    crashed, killed = (getattr(signal, name, None) for name in ("SIGBUS", "SIGKILL"))
    if "shared memory" in text or "/dev/shm" in text or codes & {EXIT_BATCH_NOT_SENT, crashed and -crashed}:
        return WorkFailed(SMALL_SHM)
    if killed and -killed in codes:
        return WorkFailed("a loader process was killed, perhaps for want of memory: set data.workers to fewer, or to 0")
    if codes:
        return WorkFailed(f"a loader process has ended with code {min(codes)}; data.workers=0 may show why")
    lines = text.strip().splitlines() or [""]
    kind = re.match(r"Caught (\w+) in", text)
    message = lines[-1] if kind else _one_line(error)
    return WorkFailed(f"loading segments failed: {message}")


def with_noise(
    batches: Iterator[dict[str, Tensor]], shape: tuple[int, ...], seed: int, device: torch.device | None = None
) -> Iterator[dict[str, Tensor]]:
    """The batches, each with `uniform` `(B, 2)` in [0, 1), which decides the timesteps of its items and which of them
    refine a guess, and with `noise` `(B, C, F, T)`. Both are functions of an item's global index, like the item.

    With a `device`, the noise is drawn there by another generator, so its numbers are others.
    """
    with ThreadPoolExecutor(NOISE_THREADS, "noise") as threads:
        for batch in batches:
            indices = batch["index"].tolist()
            uniform = torch.stack([torch.from_numpy(generator(seed, "timestep", i).random(2)) for i in indices]).float()
            if device is None:
                noise = torch.stack(list(threads.map(lambda i: normal(shape, seed, "noise", i), indices)))
            else:
                keys = torch.tensor([key(seed, "noise", i) for i in indices])
                noise = hashed_normal(move(keys, device), shape)
            yield batch | {"uniform": uniform, "noise": noise}


def prefetch(items: Iterator[T], device: torch.device | None = None) -> Iterator[T]:
    """The same items, each made in a thread while the one before it is used; errors come where the item would.

    On a GPU, `device` is that thread's current one, too: threads begin on the first, and would pin memory there.
    """
    initializer = torch.cuda.set_device if device is not None and device.type == "cuda" and device.index else None
    with ThreadPoolExecutor(1, "prefetch", initializer, (device,)) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def _init_worker(worker: int) -> None:
    """Ignore the signals that ask for a stop: Ctrl-C and torchrun's SIGTERM reach all processes, and the main one
    decides when to stop.

    A batch that cannot be sent ends its worker: multiprocessing would print a traceback and drop the batch, and the
    main process would wait for it for ever.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if (crashed := getattr(signal, "SIGBUS", None)) is not None:
        signal.signal(crashed, signal.SIG_DFL)  # a full /dev/shm; torch prints, and the main process does, too
    Queue._on_queue_feeder_error = staticmethod(lambda error, item: os._exit(EXIT_BATCH_NOT_SENT))
