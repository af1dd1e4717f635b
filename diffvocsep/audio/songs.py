"""Which songs are meant by what was named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..util.errors import UserError
from ..util.folders import walk
from .input_formats import SONGS

STEMS = ("vocals", "instrumental")  # what becomes of a song; its results are named so
NAMED = 20  # files that are named one by one; of more, the number is told


class Song(NamedTuple):
    """A file, and the folder it lies in, from the one that was named."""

    path: Path
    folder: Path = Path()


def find_songs(
    inputs: Iterable[Path], outputs: Iterable[Path] = (), beside: bool = False
) -> tuple[list[Song], list[Path]]:
    """Files as given; of a folder, all songs in it and in its sub-folders, by name; and what was left out of them.

    `outputs` are folders for results: what lies in one of them is no song to be separated. `beside`: results lie beside
    their songs, and what is named like one of them is none either.

    Raises:
        UserError: a folder without songs, or nothing at that path.
    """
    songs: list[Song] = []
    left_out: list[Path] = []
    results = {os.path.realpath(path) for path in outputs}
    for path in inputs:
        if path.is_dir():
            files = list(_walk(path, results - {os.path.realpath(path)}, left_out))
            found = [file for file in files if file.suffix.lower() in SONGS]
            made = {result for file in found for result in _results(file)} if beside else set()
            found = [file for file in found if file.with_suffix("") not in made]
            left_out += sorted({*files} - {*found})
            songs += [Song(file, file.parent.relative_to(path)) for file in found]
            if not found:
                raise UserError(f"there is no audio file in the folder '{path}'")
        elif os.path.lexists(path):
            songs.append(Song(path))
        else:
            hint = "; standard input is /dev/stdin" if path == Path("-") else ""
            raise UserError(f"there is no file or folder '{path}'{hint}")
    return songs, left_out


def _walk(folder: Path, results: set[str], left_out: list[Path]) -> Iterator[Path]:
    """All files but hidden ones ("._song.mp3" of macOS is no song)."""
    for place, folders, files in walk(folder, onerror=lambda error: left_out.append(Path(error.filename))):
        if os.path.realpath(place) in results:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            file = place / name
            if name.startswith("."):
                continue
            if file.is_file():
                yield file
            else:  # a pipe, or a link that leads nowhere
                left_out.append(file)


def _results(song: Path) -> Iterator[Path]:
    """The results of a song beside it, without their endings."""
    for name in (song.stem, song.name):
        for stem in STEMS:
            yield song.with_name(f"{name}_{stem}")


def left_out_note(left_out: list[Path]) -> list[str]:
    """The line that names what is left out; none, where nothing is."""
    if not left_out:
        return []
    more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
    return [f"left out, no songs by their names: {', '.join(map(str, left_out[:NAMED]))}{more}"]
