"""The same work on many files, on all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count

from tqdm.auto import tqdm


def in_threads(work: Callable, arguments: Iterable[tuple], title: str, unit: str) -> None:
    """`work(*one)` for each of the arguments, under a bar. Libraries that decode audio let other threads work.

    Raises whatever `work` raises first; what has not begun by then is left out.
    """
    with ThreadPoolExecutor(cpu_count()) as threads:
        jobs = [threads.submit(work, *one) for one in arguments]
        try:
            for job in tqdm(jobs, title, unit=unit):
                job.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
