"""The same work for every song, in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import torch
from tqdm.auto import tqdm

from ..util.device import resolve_device
from ..util.errors import WorkFailed
from ..util.memory import keep_freed_memory

Item, Result = TypeVar("Item"), TypeVar("Result")
PROCESSES_PER_GPU = 4  # processes that share a GPU; each holds the model of its own


def processes(wanted: int, items: int, device: str) -> int:
    """How many processes to use: as asked for, or one per core (0)."""
    most = os.cpu_count() or 1
    if resolve_device(device).type != "cpu":
        most = min(most, PROCESSES_PER_GPU)
    return max(1, min(wanted or most, items))


def progress_bar(items: Iterable[Item], label: str, total: int, unit: str = "song") -> Iterable[Item]:
    """The items with a bar, or where nobody can watch one, one line on stderr that says what has begun."""
    if not sys.stderr.isatty():
        print(f"{label}: {total} {unit}{'s' if total > 1 else ''}", file=sys.stderr, flush=True)
    return tqdm(items, label, total, unit=unit, disable=None, leave=False)


def parallel_map(work: Callable[[Item], Result], items: Sequence[Item], jobs: int, label: str) -> list[Result]:
    """`[work(item) for item in items]` with a bar, in `jobs` processes (1: in this one).

    Work that fails, or Ctrl-C, ends the processes at once; what they have written stays.

    Raises:
        WorkFailed: a process was killed (usually for its memory).
    """
    if jobs == 1:
        return [work(item) for item in progress_bar(items, label, len(items))]
    results: dict[int, Result] = {}
    context = multiprocessing.get_context("spawn")  # a process that forks while torch has threads may hang
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with _numpy_threads(threads):
        pool = ProcessPoolExecutor(jobs, context, _init_worker, (threads,))
        try:
            with _without_ctrl_c():
                futures = {pool.submit(work, item): index for index, item in enumerate(items)}
            for future in progress_bar(as_completed(futures), label, len(items)):
                results[futures[future]] = future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
                process.join()
            if isinstance(error, BrokenProcessPool):
                raise WorkFailed(
                    "a process was ended by the system, perhaps for its memory; run it again with a smaller --jobs"
                ) from None
            raise
        pool.shutdown()
    return [results[index] for index in range(len(items))]


def _init_worker(threads: int) -> None:
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its children
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own lasts beyond a process that is killed, and multiprocessing complains
    torch.set_num_threads(threads)


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Around the start of processes: they inherit that Ctrl-C waits, for they import torch, for seconds, before they
    could ignore it. In this process it waits as long as the block runs. Windows has no such mask."""
    mask, block, restore = (getattr(signal, name, None) for name in ("pthread_sigmask", "SIG_BLOCK", "SIG_SETMASK"))
    if mask is None:
        yield
        return
    before = mask(block, {signal.SIGINT})
    try:
        yield
    finally:
        mask(restore, before)


def _end_with_parent() -> None:
    """A parent that was killed cannot end its children; without this they would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def _numpy_threads(count: int) -> Iterator[None]:
    """NumPy's threads are chosen where a process starts, by the environment."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = before or str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
