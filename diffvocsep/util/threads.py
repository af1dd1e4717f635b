"""The same work on many files, on all cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def in_threads(work: Callable, arguments: Iterable[tuple], title: str, unit: str) -> None:
    """`work(*one)` for each of the arguments, under a bar. Libraries that decode audio let other threads work.

    Raises whatever `work` raises first; what has not begun by then is left out.
    """
    for _ in results_in_threads(work, arguments, title, unit):
        pass


def results_in_threads(work: Callable[..., T], arguments: Iterable[tuple], title: str, unit: str) -> Iterator[T]:
    """As `in_threads`, with what `work` returns, in the order of the arguments."""
    with ThreadPoolExecutor(cpu_count()) as threads:
        jobs = deque(threads.submit(work, *one) for one in arguments)
        try:
            for _ in tqdm(range(len(jobs)), title, unit=unit):
                yield jobs.popleft().result()  # and no longer kept
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
