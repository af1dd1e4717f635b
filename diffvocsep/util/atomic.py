"""Files appear whole or not at all: written under a temporary name, flushed to the disk, then renamed.

A symbolic link is written through, and a file without write permission is left alone. Temporary names tell the process
that they belong to, so that what a killed one left is removed by the next, and what a live one writes never.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path

import psutil

from .errors import UserError

PART = ".diffvocsep.part"  # how temporary names end
SCRATCH = "diffvocsep-"  # how folders for temporary files begin


def require_folder(path: Path) -> None:
    """Make a folder, if need be, and see before any work that files can be written there.

    Raises:
        UserError: they cannot.
    """
    try:
        with suppress(FileExistsError):  # said better by what follows
            path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        file = next((part for part in (path, *path.parents) if part.is_file()), None)
        why = f"'{file}' is a file" if file else error.strerror
        raise UserError(f"nothing can be written into the folder '{path}' ({why}); name another") from None


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process uses and that says who writes it, see `_is_alive`. It is short: a
    suffix to a long Korean name could pass the 255 bytes of a file name."""
    return path.with_name(f".{_process_name()}-{uuid.uuid4().hex[:12]}{PART}")


def _process_name() -> str:
    """This machine and this process, as a part of a file name."""
    return f"{_machine():08x}-{os.getpid()}-{_start_time(os.getpid())}"


def _start_time(pid: int) -> int:
    """When a process began, as a number that stays the same when the clock is set: a pid alone is used anew. On Linux
    psutil counts from the time of the boot, which moves with the clock. Raises psutil.Error."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")  # man proc
        return int(stat.rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return round(1000 * psutil.Process(pid).create_time())


def _machine() -> int:
    """A number of this machine and, in a container, of its own numbering of processes."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        numbering = ""
    return zlib.crc32(f"{socket.gethostname()} {uuid.getnode()} {numbering}".encode())


def _is_alive(path: Path) -> bool | None:
    """Whether the process that made this temporary file or folder lives, however long ago it last wrote: a computer may
    have slept, a network disk may be stuck. None for one of another machine, or with another name."""
    found = re.search(r"([0-9a-f]{8})-(\d{1,9})-(\d+)-", path.name)
    if not found or int(found[1], 16) != _machine():
        return None
    try:
        return _start_time(int(found[2])) == int(found[3])
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # it is there, and somebody else's
        return True


def temporary_folder() -> tempfile.TemporaryDirectory:
    """A folder for temporary files of this process; those that killed processes left are removed. Raises OSError."""
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        if _is_alive(left) is False:
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{_process_name()}-", ignore_cleanup_errors=True)


def resolve_target(path: Path) -> Path:
    """Where writing to `path` leads: a symbolic link is written through.

    Raises:
        UserError: a file is there that may not be written, or something that is no file.
    """
    try:
        target = Path(os.path.realpath(path))
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return target
    except (OSError, ValueError):  # no possible name: writing will tell
        return path
    if stat.S_ISLNK(mode):
        raise UserError(f"'{path}' is a link that leads to itself; name another")
    if stat.S_ISREG(mode) and (not mode & 0o222 or not os.access(target, os.W_OK)):
        raise UserError(f"'{path}' is write-protected; name another, or allow writing to it")
    if stat.S_ISDIR(mode):
        raise UserError(f"'{path}' is a folder, where a file belongs; name another, or move the folder away")
    if not stat.S_ISREG(mode):
        raise UserError(f"'{path}' is a device or a pipe, and only a file can be written; name another")
    return target


def flush(path: Path) -> None:
    """Wait until the file is on the disk: a rename can be there before the data, and a crash between them loses both
    the old file and the new."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


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
def with_filename(path: Path) -> Iterator[None]:
    """Add the name of the file to an OSError: Python leaves it out when the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # else its text is all it has
            error.filename = error.filename or str(path)
        raise


def numbered_names(name: str) -> Iterator[str]:
    """`name`, `name-2`, `name-3`, ...: names to try until one is free."""
    return chain([name], (f"{name}-{number}" for number in count(2)))


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary name beside `path`, flush to disk, then rename: never a half-written file.

    Raises:
        UserError: the file that is there is write-protected.
    """
    path = resolve_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with with_filename(path):
            write(temporary)
            flush(temporary)
            replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, seconds: float = 60.0) -> None:
    """Delete what killed processes left in `folder`: temporary files untouched for `seconds` whose process is gone, or
    was of another machine."""
    for part in folder.glob(f".*{PART}"):
        try:
            if time.time() - part.stat().st_mtime >= seconds and not _is_alive(part):
                part.unlink()
        except OSError:  # another process was faster, or has it open: it will be there next time
            continue
