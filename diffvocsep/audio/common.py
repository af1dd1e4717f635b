"""What reading and writing share: a path in a message and for libsndfile, and samples that are finite."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..util.errors import UserError

if TYPE_CHECKING:  # torch takes seconds
    from torch import Tensor


def quoted(path: Path) -> str:
    """The path in quotes, for a message: a file name that is not valid Unicode must still be printable."""
    return f'"{path}"'.encode(errors="replace").decode()


def native_path(path: Path) -> str | bytes:
    """The path for soundfile: bytes on POSIX, where a name need not be UTF-8 (old Korean archives).

    Never "-" alone, which libsndfile takes for standard input.
    """
    named = os.path.join(os.curdir, path)
    return named if os.name == "nt" else os.fsencode(named)


def no_room(path: Path, folder: Path, error: OSError) -> UserError:
    """The sentence for a song that cannot be decoded into the folder for temporary files."""
    try:
        free = f"has {shutil.disk_usage(folder).free / 1e6:.1f} MB free"
    except OSError:
        free = "cannot be used"
    return UserError(
        f"{quoted(path)} is decoded into the folder for temporary files, {quoted(folder)}, which {free} "
        f"({error.strerror or error}): make room, or name another folder in the environment variable TMPDIR."
    )


def require_finite(block: Tensor, done: int, sample_rate: int, name: str, remedy: str) -> None:
    """Raise UserError if `block` (C, n), which starts at sample `done`, holds a NaN or an infinity."""
    bad = ~block.isfinite().all(0)
    if bad.any():
        seconds = (done + int(bad.nonzero()[0])) / sample_rate
        raise UserError(f"{name} has a sample that is not a finite number at {seconds:.3f} s: {remedy}.")
