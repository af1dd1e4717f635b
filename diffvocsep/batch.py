"""Separate audio files: read, separate, write, block by block, so that a file of any length fits in memory; and many
files, of which one that fails never ends the others."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .audio import AudioReader, AudioWriter
from .audio.common import no_room
from .audio.songs import Song, pair_outputs
from .audio.turns import AT_ONCE, Part, join, split
from .separator import BLOCK_SECONDS, Separator
from .util.atomic import own_folder
from .util.cli import print_notes, say
from .util.errors import UserError


class Job(NamedTuple):
    """One song and where its results go, or why they cannot."""

    source: Path
    vocals: Path
    instrumental: Path | None
    problem: UserError | None


def plan(songs: list[Song], output: Path, instrumental: Path | None, one: bool) -> list[Job]:
    """Raises UserError where several songs have no folder for their results, or the only song has no place for them."""
    vocals = pair_outputs(songs, output, "vocals", one)
    rest = pair_outputs(songs, instrumental, "instrumental", one) if instrumental else [None] * len(songs)
    jobs = []
    for (source, _), *targets in zip(songs, vocals, rest, strict=True):
        problem = next((target for target in targets if isinstance(target, UserError)), None)
        if problem and len(songs) == 1:
            raise problem
        jobs.append(Job(source, *targets, problem))
    return jobs


def separate_all(jobs: list[Job], separate: Callable[[Job], None], total: bool = True) -> int:
    """Call `separate` for each job and say what became of it: the number of those that failed, of whatever cause.

    `total`: say at the end how many were made; one of several processes knows only its own share.
    """
    failed: list[Path] = []
    for job in jobs:
        try:
            if job.problem:
                raise job.problem
            separate(job)
        except UserError as error:
            _complain(str(error))
            failed.append(job.source)
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            _complain(f"'{job.source}' could not be separated ({reason})")
            failed.append(job.source)
    if total and len(jobs) > 1:
        names = f"; failed: {', '.join(map(str, failed))}" if failed else ""
        say(f"{len(jobs) - len(failed)} of {len(jobs)} songs separated{names}")
    return len(failed)


def _complain(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)


def separate_file(
    separator: Separator,
    source: Path,
    vocals: Path,
    instrumental: Path | None = None,
    subtype: str | None = None,
    **options,
) -> None:
    """Write the vocals of `source`, and what is left of it, with its sample rate, channels and length.

    Args:
        subtype: see `AudioWriter`; None is 32-bit float in a .wav.
        options: those of `Separator.separate`.

    Raises:
        UserError: a file that cannot be read or written, or an output that is the input itself.
    """
    require_outputs(source, vocals, instrumental)
    with AudioReader(source) as reader:
        separate_reader(separator, reader, vocals, instrumental, subtype, **options)


def require_outputs(source: Path, vocals: Path, instrumental: Path | None) -> None:
    """Raise UserError for an output that is the input or the other output, or whose name no disk can hold."""
    targets = [path for path in (vocals, instrumental) if path is not None]
    if len({os.path.realpath(path) for path in targets}) < len(targets):
        raise UserError(f"vocals and instrumental cannot both be written to '{vocals}'; name two files")
    for path in targets:
        try:
            same = os.path.realpath(path) == os.path.realpath(source) or (path.exists() and path.samefile(source))
        except OSError as error:  # a name of 255 bytes has no room for "_vocals"
            raise UserError(f"'{path}' cannot be written ({error.strerror}); rename the song or name a file") from None
        if same:
            raise UserError(f"'{source}' is the input and would be overwritten; name another output")


def separate_reader(
    separator: Separator,
    reader: AudioReader,
    vocals: Path,
    instrumental: Path | None = None,
    subtype: str | None = None,
    **options,
) -> None:
    """`separate_file` for a file that is open."""
    print_notes(reader.notes)
    with ExitStack() as stack:
        layout = (reader.sample_rate, reader.channels, subtype, reader.frames, reader.mask)
        targets = [path for path in (vocals, instrumental) if path is not None]
        writers = [stack.enter_context(AudioWriter(path, *layout)) for path in targets]
        for parts in _pairs(separator, reader, **options):
            for writer, part in zip(writers, parts, strict=False):
                writer.write(part)


def _pairs(separator: Separator, reader: AudioReader, **options) -> Iterator[tuple[Tensor, Tensor]]:
    """Vocals and accompaniment, `(C, n)` each, block after block."""
    size = round(BLOCK_SECONDS * reader.sample_rate)
    if reader.channels <= AT_ONCE:
        yield from separator.separate_stream(lambda: reader.blocks(size), reader.sample_rate, reader.frames, **options)
        return
    if options.get("uncertainty") is not None:
        raise UserError(f"--uncertainty measures songs of up to {AT_ONCE} channels; this one has {reader.channels}")
    short = max(1, size * AT_ONCE // reader.channels)  # as much memory as 8 channels take
    with own_folder() as name:
        folder = Path(name)
        try:
            voices = []
            for part in split(reader.blocks(short), reader.channels, folder):
                pairs = separator.separate_stream(
                    lambda part=part: part.blocks(size), reader.sample_rate, reader.frames, **options
                )
                voice = Part(part.path.with_suffix(".vocals"), part.channels)
                voices.append(voice.write(vocals for vocals, _ in pairs))
                part.path.unlink()
        except OSError as error:
            raise no_room(reader.path, folder, error) from error
        for vocals, block in zip(join(voices, short), reader.blocks(short), strict=True):
            yield vocals, block - vocals


def middle(song: Path | AudioReader, seconds: float) -> tuple[torch.Tensor, int, float]:
    """The middle of a file, open or not: waveform `(C, n)`, sample rate, and where it begins in s."""
    if not isinstance(song, AudioReader):
        with AudioReader(song) as reader:
            return middle(reader, seconds)
    length = round(seconds * song.sample_rate)
    first = max(0, (song.frames - length) // 2)
    parts = list(song.blocks(round(BLOCK_SECONDS * song.sample_rate), first, first + length))
    return torch.cat(parts, dim=-1), song.sample_rate, first / song.sample_rate
