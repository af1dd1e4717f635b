"""All folders below one, where links may lead anywhere, and names that are no text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def walk(root: Path, onerror: Callable[[OSError], object] | None = None) -> Iterator[tuple[Path, list[str], list[str]]]:
    """`os.walk` from `root` on, each folder once. Links are followed, so that what lies in several places can be put
    together, but not to a folder that `root` lies in: all that stands beside it would come along, from / the whole
    disk."""
    seen = {str(folder) for folder in Path(os.path.realpath(root)).parents}
    for folder, names, files in os.walk(root, followlinks=True, onerror=onerror):
        real = os.path.realpath(folder)
        if real in seen:
            names.clear()
        else:
            seen.add(real)
            yield Path(folder), names, files


def readable(name: str) -> str:
    """The name of a file as text that can be written anywhere. POSIX knows bytes: what Python cannot read in the
    encoding of the system (LC_ALL=POSIX has ASCII alone) is read as UTF-8, and what is none is spelt, as in `\\xff`."""
    bytes_or_halves = "surrogateescape" if os.name == "posix" else "backslashreplace"  # Windows has halves of letters
    return name.encode("utf-8", bytes_or_halves).decode("utf-8", "backslashreplace")
