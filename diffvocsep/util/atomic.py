"""Files appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

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
    """A name beside `path` that no other process uses and that says who writes it, see `_is_written`. It is short: a
    suffix to a long Korean name could pass the 255 bytes of a file name."""
    return path.with_name(f".{_machine():08x}-{os.getpid()}-{uuid.uuid4().hex[:12]}{PART}")


def _machine() -> int:
    """A number of this machine and, in a container, of its own numbering of processes."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        numbering = ""
    return zlib.crc32(f"{socket.gethostname()} {uuid.getnode()} {numbering}".encode())


def _is_written(part: Path) -> bool:
    """Whether the process of this machine that began a temporary file is alive still, however long ago it last wrote:
    a computer may have slept, a network disk may be stuck."""
    found = re.fullmatch(r"\.([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{12}" + re.escape(PART), part.name)
    if not found or int(found[1], 16) != _machine():
        return False
    try:
        return psutil.Process(int(found[2])).create_time() <= part.stat().st_mtime + 1  # else the number is used anew
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # it is there, and somebody else's
        return True


def replace_file(temporary: Path, path: Path) -> None:
    """`os.replace`, retried for a second: on Windows a file that someone has open cannot be replaced."""
    for attempt in range(10):
        try:
            return os.replace(temporary, path)
        except PermissionError:
            if attempt == 9:
                raise
            time.sleep(0.1)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an OSError say which file it is about: of a full disk, Python does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary name beside `path`, flush to disk, then rename: never a half-written file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with named(path):
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, seconds: float = 60.0) -> None:
    """Delete what killed processes left in `folder`: temporary files untouched for `seconds` whose process is gone, or
    was of another machine."""
    for part in folder.glob(f".*{PART}"):
        try:
            if time.time() - part.stat().st_mtime >= seconds and not _is_written(part):
                part.unlink()
        except OSError:  # another process was faster, or has it open: it will be there next time
            continue
