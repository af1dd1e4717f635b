"""Which songs are meant by what was named, and where their results go."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..util.errors import UserError
from .formats import SONGS

NAMED = 20  # files that are named one by one; of more, the number is told


class Song(NamedTuple):
    """A file, and the folder it lies in, from the one that was named."""

    path: Path
    folder: Path = Path()


def find_songs(inputs: Iterable[Path], outputs: Iterable[Path] = ()) -> tuple[list[Song], list[Path]]:
    """Files as given; of a folder, all songs in it and in its sub-folders, by name; and what was left out of them.

    `outputs` are folders for results: what lies in one of them is no song to be separated.

    Raises:
        UserError: a folder without songs, or nothing at that path.
    """
    songs: list[Song] = []
    left_out: list[Path] = []
    results = {os.path.realpath(path) for path in outputs}
    for path in inputs:
        if path.is_dir():
            before = len(songs)
            for file in _walk(path, results - {os.path.realpath(path)}, left_out):
                if file.suffix.lower() in SONGS:
                    songs.append(Song(file, file.parent.relative_to(path)))
                else:
                    left_out.append(file)
            if len(songs) == before:
                raise UserError(f"there is no audio file in the folder '{path}'")
        elif os.path.lexists(path):
            songs.append(Song(path))
        else:
            hint = "; standard input is /dev/stdin" if path == Path("-") else ""
            raise UserError(f"there is no file or folder '{path}'{hint}")
    return songs, left_out


def _walk(folder: Path, results: set[str], left_out: list[Path]) -> Iterator[Path]:
    """All files but hidden ones ("._song.mp3" of macOS is no song); links are followed, in a circle only once."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=lambda e: left_out.append(Path(e.filename))):
        real = os.path.realpath(place)
        if real in seen or real in results:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            file = Path(place, name)
            if name.startswith("."):
                continue
            if file.is_file():
                yield file
            else:  # a pipe, or a link that leads nowhere
                left_out.append(file)


def left_out_note(left_out: list[Path]) -> list[str]:
    """The line that names what is left out; none, where nothing is."""
    if not left_out:
        return []
    more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
    return [f"left out, no songs by their endings: {', '.join(map(str, left_out[:NAMED]))}{more}"]


def pair_outputs(songs: list[Song], output: Path, suffix: str, one: bool) -> list[Path | UserError]:
    """Where each song's result goes: `output` itself for one file, else `output/<folder>/<name>_<suffix>.wav`; or why
    it can go nowhere: that is the input of another, or the result of an earlier one.

    Raises:
        UserError: several songs and no folder.
    """
    if one and not output.is_dir():
        targets = [output]
    elif output.is_dir() or not (output.exists() or output.suffix.lower() in SONGS):
        targets = [output / song.folder / f"{song.path.stem}_{suffix}.wav" for song in songs]
    else:
        raise UserError(f"'{output}' is not a folder, but {suffix} of several songs go into one; name a folder")
    inputs, taken = {os.path.realpath(song.path) for song in songs}, {}
    results: list[Path | UserError] = []
    for (source, _), target in zip(songs, targets, strict=True):
        if os.path.realpath(target) in inputs:
            results.append(UserError(f"'{target}' is an input and would be overwritten; name another output"))
        elif other := taken.get(str(target).lower()):
            both = f"'{other}' and '{source}' would both be written to '{target}'"
            results.append(UserError(f"{both}; rename one or separate them one by one"))
        else:
            taken[str(target).lower()] = source
            results.append(target)
    return results
