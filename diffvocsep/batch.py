"""Separate audio files: read, separate, write, block by block, so that a file of any length fits in memory."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch

from .audio import AudioReader, AudioWriter
from .separator import BLOCK_SECONDS, Separator
from .util.errors import UserError

SOUNDFILE = {".wav", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf"}
AUDIO_EXTENSIONS = SOUNDFILE | {".m4a", ".mp4", ".aac", ".wma", ".mka", ".webm"}  # the latter through ffmpeg


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
    targets = [path for path in (vocals, instrumental) if path is not None]
    if len({path.resolve() for path in targets}) < len(targets):
        raise UserError(f"vocals and instrumental cannot both be written to '{vocals}'; name two files")
    for path in targets:
        if path.resolve() == source.resolve() or (path.exists() and path.samefile(source)):
            raise UserError(f"'{source}' is the input and would be overwritten; name another output")
    with AudioReader(source) as reader, ExitStack() as stack:
        writers = [
            stack.enter_context(AudioWriter(path, reader.sample_rate, reader.channels, subtype, reader.frames))
            for path in targets
        ]
        size = round(BLOCK_SECONDS * reader.sample_rate)
        pairs = separator.separate_stream(lambda: reader.blocks(size), reader.sample_rate, reader.frames, **options)
        for parts in pairs:
            for writer, part in zip(writers, parts, strict=False):
                writer.write(part)


def middle(path: Path, seconds: float) -> tuple[torch.Tensor, int, float]:
    """The middle of a file: waveform `(C, n)`, sample rate, and where it begins in s."""
    with AudioReader(path) as reader:
        length = round(seconds * reader.sample_rate)
        first, position, parts = max(0, (reader.frames - length) // 2), 0, []
        for block in reader.blocks(round(BLOCK_SECONDS * reader.sample_rate)):
            if position + block.shape[-1] > first:
                parts.append(block[:, max(0, first - position) : first + length - position])
            position += block.shape[-1]
            if position >= first + length:
                break
        return torch.cat(parts, dim=-1), reader.sample_rate, first / reader.sample_rate


def find_inputs(inputs: list[Path]) -> list[Path]:
    """Files as given; of a folder, the audio files in it, by name.

    Raises:
        UserError: a folder without audio files, or nothing at that path.
    """
    found = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(f for f in path.iterdir() if f.suffix.lower() in AUDIO_EXTENSIONS and f.is_file())
            inside = [f for f in inside if not f.name.startswith(".")]  # "._song.mp3" of macOS is not a song
            if not inside:
                raise UserError(f"there is no audio file in the folder '{path}'")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"there is no file or folder '{path}'")
    return found


def pair_outputs(sources: list[Path], output: Path, suffix: str, one: bool) -> list[Path]:
    """Where each source's result goes: `output` itself for one file, else `output/<name>_<suffix>.wav`.

    Raises:
        UserError: several sources and no folder, two that would be written to the same file, or one that would be
            overwritten.
    """
    if one and not output.is_dir():
        targets = [output]
    elif output.is_dir() or not (output.exists() or output.suffix.lower() in AUDIO_EXTENSIONS):
        targets = [output / f"{source.stem}_{suffix}.wav" for source in sources]
    else:
        raise UserError(f"'{output}' is not a folder, but {suffix} of several songs go into one; name a folder")
    inputs, taken = {source.resolve() for source in sources}, {}
    for source, target in zip(sources, targets, strict=True):
        if target.resolve() in inputs:
            raise UserError(f"'{target}' is an input and would be overwritten; name another output")
        if other := taken.get(str(target).lower()):
            raise UserError(
                f"'{other}' and '{source}' would both be written to '{target}'; rename one or separate them one by one"
            )
        taken[str(target).lower()] = source
    return targets
