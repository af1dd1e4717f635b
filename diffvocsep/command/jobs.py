"""Which songs are separated and where the results go, checked before torch is imported; and the loop over many songs,
in which one that fails does not end the others."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ..audio.input_formats import LARGE, SONGS
from ..audio.songs import Song
from ..util.cli import complain, say
from ..util.errors import UserError

LARGER = (
    6  # how many times the bytes of a lossy song one of a `LARGE` kind has: 1411 kbit/s of a CD, some 240 of an MP3
)


class Output(NamedTuple):
    """A path for results: a folder, which need not exist, or a file for one song."""

    path: Path
    slash: bool = False  # at its end, which means a folder

    @classmethod
    def from_text(cls, text: str) -> Output:
        return cls(Path(text), text.endswith(("/", os.sep)))

    def is_folder(self, one: bool, stem: str) -> bool:
        """Whether it is a folder for the `stem` of songs; `one`: there is one only, so that it may be a file.

        Raises:
            UserError: several songs and no folder.
        """
        if self.slash or self.path.is_dir():
            return True
        if one:
            return not self.path.suffix and not self.path.exists()
        if self.path.exists() or self.path.suffix.lower() in SONGS:
            raise UserError(f"'{self.path}' is not a folder, but {stem} of several songs go into one; name a folder")
        return True


class Job(NamedTuple):
    """One song and where its results go, or why they cannot."""

    source: Path
    vocals: Path
    instrumental: Path | None
    problem: UserError | None

    @property
    def targets(self) -> list[Path]:
        return [path for path in (self.vocals, self.instrumental) if path is not None]


def plan(
    songs: list[Song],
    output: Output | None,
    instrumental: Output | None,
    one: bool,
    ending: str = ".wav",
    both: bool = False,
) -> list[Job]:
    """Where the results of each song go: to a file, into a folder, or beside the song where no `output` is named.

    Args:
        one: there is one song, and it was named itself.
        ending: of the names that are made here.
        both: the instrumental is wanted wherever the vocals go into a folder or beside the song.

    Raises:
        UserError: several songs have no folder for their results, or the only song has no place for them.
    """
    if instrumental is None and both and (output is None or output.is_folder(one, "vocals")):
        rest = pair_outputs(songs, output, "instrumental", one, ending)
    else:
        rest = pair_outputs(songs, instrumental, "instrumental", one, ending) if instrumental else [None] * len(songs)
    jobs = []
    for (source, _), *targets in zip(songs, pair_outputs(songs, output, "vocals", one, ending), rest, strict=True):
        problem = next((target for target in targets if isinstance(target, UserError)), None)
        if problem and len(songs) == 1:
            raise problem
        jobs.append(Job(source, *targets, problem))
    return jobs


def pair_outputs(
    songs: list[Song], output: Output | None, stem: str, one: bool, ending: str = ".wav"
) -> list[Path | UserError]:
    """Where the `stem` of each song goes: `output` itself for one file, else `<name>_<stem><ending>` in the folder
    `output`, or beside the song where that is None; or why it can go nowhere: that is the input of another, or the
    result of an earlier one.

    Raises:
        UserError: several songs and no folder.
    """
    if output is not None and not output.is_folder(one, stem):
        targets = [output.path]
    else:
        folders = [song.path.parent if output is None else output.path / song.folder for song in songs]
        targets = [folder / f"{name}_{stem}{ending}" for folder, name in _names(songs, folders)]
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


def _names(songs: Iterable[Song], folders: Iterable[Path]) -> list[tuple[Path, str]]:
    """Each folder with the name of its song: without its ending, but where two would be the same."""
    pairs = [(folder, song.path) for folder, song in zip(folders, songs, strict=True)]
    alike: dict[str, set[str]] = defaultdict(set)
    for folder, path in pairs:
        alike[str(folder / path.stem).lower()].add(path.name.lower())
    clash = {key for key, names in alike.items() if len(names) > 1}
    return [(folder, path.name if str(folder / path.stem).lower() in clash else path.stem) for folder, path in pairs]


def require_outputs(source: Path, vocals: Path, instrumental: Path | None) -> None:
    """Raise UserError for an output that is the input or the other output, or that no disk can hold."""
    targets = [path for path in (vocals, instrumental) if path is not None]
    if len({os.path.realpath(path) for path in targets}) < len(targets):
        raise UserError(f"vocals and instrumental cannot both be written to '{vocals}'; name two files")
    for path in targets:
        try:
            same = is_same(path, source)
            home = next(parent for parent in path.parents if parent.exists())
        except OSError as error:  # a name of 255 bytes has no room for "_vocals"
            raise UserError(f"'{path}' cannot be written ({error.strerror}); rename the song or name a file") from None
        if same:
            raise UserError(f"'{source}' is the input and would be overwritten; name another output")
        if not home.is_dir():
            raise UserError(f"'{path}' cannot be written: '{home}' is a file; name a folder with --output")
        if not os.access(home, os.W_OK):
            raise UserError(f"'{path}' cannot be written into '{home}'; name a folder of yours with --output")


def is_same(path: Path, other: Path) -> bool:
    """Whether both names, one of which may not exist yet, are of one file. Raises OSError."""
    return os.path.realpath(path) == os.path.realpath(other) or (path.exists() and path.samefile(other))


def separate_all(jobs: list[Job], separate: Callable[[Job], None], total: bool = True) -> int:
    """Call `separate` for each job and print what became of it; returns how many failed, for whatever reason.

    `total`: say which song of how many it is, how long the rest will take, and at the end how many were made; one of
    several processes knows only its own share.
    """
    failed: list[Path] = []
    sizes, start = [_size(job.source) for job in jobs], time.monotonic()
    for number, job in enumerate(jobs):
        if total and len(jobs) > 1:
            left = _time_left(time.monotonic() - start, sum(sizes[:number]), sum(sizes[number:]))
            say(f"song {number + 1} of {len(jobs)}: {job.source}{left}")
        try:
            if job.problem:
                raise job.problem
            separate(job)
        except UserError as error:
            complain(str(error))
            failed.append(job.source)
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            complain(f"'{job.source}' could not be separated ({reason})")
            failed.append(job.source)
    if total and len(jobs) > 1:
        names = f"; failed: {', '.join(map(str, failed))}" if failed else ""
        took = duration(time.monotonic() - start)
        say(f"{len(jobs) - len(failed)} of {len(jobs)} songs separated{names}; it took {took}")
    return len(failed)


def _size(path: Path) -> int:
    """Bytes, which tell about how long a song is, as if it were lossy."""
    try:
        return path.stat().st_size // (LARGER if path.suffix.lower() in LARGE else 1)
    except OSError:
        return 0


def _time_left(seconds: float, done: int, rest: int) -> str:
    """How long `rest` bytes will take, where `done` took `seconds`."""
    return f", about {duration(seconds * rest / done)} left" if done else ""


def duration(seconds: float) -> str:
    """A time to wait, as people say it."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
