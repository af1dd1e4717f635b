"""Files appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from .errors import UserError

PART = ".diffvocsep.part"  # how temporary names end


def require_folder(path: Path) -> None:
    """Make a folder, if need be, and see before any work that files can be written there.

    Raises:
        UserError: they cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"nothing can be written into the folder '{path}' ({error.strerror}); name another") from None


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process uses, and short: a suffix to a long Korean name could pass the 255
    bytes of a file name."""
    return path.with_name(f".{uuid.uuid4().hex}{PART}")


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
    temporary = temporary_name(path)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, seconds: float = 60.0) -> None:
    """Delete what killed processes left in `folder`: temporary files untouched for `seconds`."""
    for part in folder.glob(f".*{PART}"):
        try:
            if time.time() - part.stat().st_mtime >= seconds:
                part.unlink()
        except OSError:  # another process was faster, or has it open: it will be there next time
            continue
