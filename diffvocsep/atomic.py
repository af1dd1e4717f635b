"""Files appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def replace_file(temporary: Path, path: Path) -> None:
    """`os.replace`, retried for a second: on Windows a file that someone has open cannot be replaced."""
    for attempt in range(10):
        try:
            return os.replace(temporary, path)
        except PermissionError:
            if attempt == 9:
                raise
            time.sleep(0.1)


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary name beside `path`, flush to disk, then rename: never a half-written file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")  # two processes may write the same file
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, seconds: float = 60.0) -> None:
    """Delete what killed processes left of checkpoints in `folder`: temporary files untouched for `seconds`."""
    for part in folder.glob("*.pt.*.part"):  # others may download into this folder
        try:
            if time.time() - part.stat().st_mtime >= seconds:
                part.unlink()
        except OSError:  # another process was faster, or has it open: it will be there next time
            continue
