"""Separate audio files: read, separate, write, block by block, so that a file of any length fits in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from ..audio import AudioReader, AudioWriter
from ..audio.channel_groups import GROUP_SIZE, ChannelGroup, join_channels, split_channels
from ..audio.common import no_room
from ..audio.output_formats import choose_subtype
from ..audio.songs import STEMS
from ..separator import BLOCK_SECONDS, Separator
from ..uncertainty import Uncertainty
from ..util.atomic import temporary_folder
from ..util.cli import print_notes
from ..util.errors import UserError
from .jobs import require_outputs


def separate_file(
    separator: Separator,
    source: Path,
    vocals: Path,
    instrumental: Path | None = None,
    subtype: str | None = None,
    bitrate: int | None = None,
    rescale: bool = False,
    **options,
) -> None:
    """Write the vocals of `source`, and what is left of it, with its sample rate, channels and length.

    Args:
        subtype, bitrate: see `AudioWriter`; None is 32-bit float in a .wav.
        rescale: make both quieter by one factor where a format cannot hold a peak, and say so.
        options: those of `Separator.separate`.

    Raises:
        UserError: a file that cannot be read or written, or an output that is the input itself.
    """
    require_outputs(source, vocals, instrumental)
    with AudioReader(source) as reader:
        separate_reader(separator, reader, vocals, instrumental, subtype, bitrate, rescale, **options)


def separate_reader(
    separator: Separator,
    reader: AudioReader,
    vocals: Path,
    instrumental: Path | None = None,
    subtype: str | None = None,
    bitrate: int | None = None,
    rescale: bool = False,
    **options,
) -> float:
    """`separate_file` for an open file. Returns the gain of what was written: 1, or less where `rescale` was needed."""
    print_notes(reader.notes)
    targets = [path for path in (vocals, instrumental) if path is not None]
    parts = _pairs(separator, reader, **options)
    if not rescale or {choose_subtype(path, subtype) for path in targets} == {"float"}:
        _write(targets, reader, parts, subtype, bitrate)
        return 1.0
    with temporary_folder() as folder, ExitStack() as stack:
        drafts = [Path(folder, f"{stem}.wav") for stem in STEMS[: len(targets)]]
        peak = max(1.0, _write(drafts, reader, parts))
        size = round(BLOCK_SECONDS * reader.sample_rate)
        readers = [stack.enter_context(AudioReader(draft)) for draft in drafts]
        blocks = zip(*(draft.blocks(size) for draft in readers), strict=True)
        _write(targets, reader, ([block / peak for block in some] for some in blocks), subtype, bitrate)
    if peak > 1:
        down = f"{20 * math.log10(peak):.2f} dB"
        print_notes([f"{' and '.join(map(str, targets))} lie {down} below the song, so that the highest peak fits"])
    return 1 / peak


def uncertainty_for_picture(separator: Separator, channels: int, **options) -> Uncertainty | None:
    """An empty `Uncertainty` for a song that is separated with these options of `Separator.separate`. None where it
    cannot be estimated: no head, settings that the head was not fitted to, or more than `GROUP_SIZE` channels."""
    if separator.head is None or channels > GROUP_SIZE:
        return None
    uncertainty = separator.uncertainty(**options)
    return None if uncertainty.not_fitted else uncertainty


def require_format(reader: AudioReader, targets: list[Path], subtype: str | None, bitrate: int | None) -> None:
    """Raise UserError, before any work, where a target's format cannot hold the song's rate and channels."""
    for path in targets:
        AudioWriter(path, reader.sample_rate, reader.channels, subtype, reader.frames, reader.mask, bitrate)


def _write(
    targets: list[Path],
    reader: AudioReader,
    parts: Iterable[Sequence[Tensor]],
    subtype: str | None = None,
    bitrate: int | None = None,
) -> float:
    """Write the first part of each block to the first target, the second to the second; returns the highest peak."""
    peak = 0.0
    with ExitStack() as stack:
        layout = (reader.sample_rate, reader.channels, subtype, reader.frames, reader.mask, bitrate)
        writers = [stack.enter_context(AudioWriter(path, *layout)) for path in targets]
        for some in parts:
            for writer, part in zip(writers, some, strict=False):
                writer.write(part)
                peak = max(peak, float(part.abs().max()))
    return peak


def _pairs(separator: Separator, reader: AudioReader, **options) -> Iterator[tuple[Tensor, Tensor]]:
    """Vocals and accompaniment, `(C, n)` each, block after block."""
    size = round(BLOCK_SECONDS * reader.sample_rate)
    if reader.channels <= GROUP_SIZE:
        yield from separator.separate_stream(lambda: reader.blocks(size), reader.sample_rate, reader.frames, **options)
        return
    if options.get("uncertainty") is not None:
        raise UserError(f"--uncertainty measures songs of up to {GROUP_SIZE} channels; this one has {reader.channels}")
    short = max(1, size * GROUP_SIZE // reader.channels)  # as much memory as 8 channels take
    with temporary_folder() as name:
        folder = Path(name)
        try:
            voices = []
            for part in split_channels(reader.blocks(short), reader.channels, folder):
                pairs = separator.separate_stream(
                    lambda part=part: part.blocks(size), reader.sample_rate, reader.frames, **options
                )
                voice = ChannelGroup(part.path.with_suffix(".vocals"), part.channels)
                voices.append(voice.write(vocals for vocals, _ in pairs))
                part.path.unlink()
        except OSError as error:
            raise no_room(reader.path, folder, error) from error
        for vocals, block in zip(join_channels(voices, short), reader.blocks(short), strict=True):
            yield vocals, block - vocals
