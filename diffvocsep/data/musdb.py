"""MUSDB18 as it is distributed, `<root>/train/<artist> - <title>.stem.mp4`, decoded once to MUSDB18-HQ's layout."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from tqdm.auto import tqdm

from ..util.atomic import replace_file
from ..util.errors import UserError

if TYPE_CHECKING:
    from musdb import DB, MultiTrack

SUFFIX = ".stem.mp4"
STAMP = ".source"  # in the folder of a decoded song: what it was decoded from
CODEC_FRAMES = 2 * 1024  # samples by which the lengths of coded stems may differ without one being broken
ABANDONED = 3600.0  # s without a change, after which a folder is no longer being written


def decode_musdb(root: str | Path) -> dict[str, Path]:
    """The songs in `<root>/train`, each with its folder `<root>/decoded/<song>/{mixture,vocals,drums,bass,other}.flac`.

    A song that is not there yet, or was decoded from another file, is decoded: a few minutes and 9 GB for the whole
    dataset, once. An interrupted run goes on with the song it was at.

    Raises:
        UserError: no songs, a damaged one, no `musdb` package, no ffmpeg, or a folder that cannot be written.
    """
    root = Path(root)
    files = {path.name.removesuffix(SUFFIX): path for path in sorted((root / "train").glob("*" + SUFFIX))}
    if not files:
        raise UserError(
            f"there is no train/*{SUFFIX} in '{root}'; set data.musdb_root to the folder of MUSDB18, or get 7 s of "
            f"each song: python -c \"import musdb; musdb.DB(root='{root.as_posix()}', download=True)\""
        )
    folders = {song: root / "decoded" / song for song in files}
    missing = {song for song in files if not _is_current(folders[song], files[song])}
    if missing:
        tracks = [track for track in open_musdb(root, "train") if track.name in missing]
        for track in tqdm(tracks, "Decoding MUSDB18", unit="song"):
            if not _is_current(folders[track.name], files[track.name]):  # another process may have been faster
                _decode(track, folders[track.name], stamp(files[track.name]))
    return folders


def stamp(path: Path) -> str:
    """A text that changes with the file: its size and time."""
    return f"{path.stat().st_size} bytes, changed {path.stat().st_mtime_ns} ns after 1970\n"


def _is_current(folder: Path, source: Path) -> bool:
    try:
        return (folder / STAMP).read_text(encoding="utf-8") == stamp(source)
    except OSError:
        return False


def import_musdb() -> ModuleType:
    """The package, for which what it needs may be missing.

    Raises:
        UserError: it is not installed, or ffmpeg is not.
    """
    try:
        import musdb
    except ImportError:
        raise UserError("MUSDB18's stem files need the package musdb; install it with: pip install musdb") from None
    except RuntimeError:  # from stempeg
        raise UserError("MUSDB18's stem files need the programs ffmpeg and ffprobe; install ffmpeg") from None
    return musdb


def open_musdb(root: Path, subset: str, split: str | None = None) -> DB:
    """The package's view of a half of MUSDB18: it looks into each file.

    Raises:
        UserError: the package or a program is missing, or a file is damaged.
    """
    musdb = import_musdb()
    import ffmpeg  # comes with it

    try:
        return musdb.DB(root=str(root), subsets=subset, split=split)
    except (ffmpeg.Error, Warning) as error:
        raise damaged(f"one in {root / subset}", error) from None


def damaged(song: str, error: Exception) -> UserError:
    """The sentence for an `ffmpeg.Error`, or the `Warning` that stempeg makes of one."""
    said = error.stderr.decode(errors="replace") if getattr(error, "stderr", None) else str(error)
    reason = said.strip().splitlines()[-1]
    return UserError(f"a song of MUSDB18, {song}, cannot be decoded ({reason}); replace it by a whole copy")


def _decode(track: MultiTrack, folder: Path, source: str) -> None:
    """Write mixture and sources of a track, exactly as decoded, and only then give the folder its name."""
    with suppress(OSError):  # another process may rename what is looked at
        for old in folder.parent.glob(".*.part"):  # of a run that was killed
            if time.time() - old.stat().st_mtime > ABANDONED:
                shutil.rmtree(old, ignore_errors=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        sounds = {name: sound.audio for name, sound in {"mixture": track, **track.sources}.items()}
        lengths = [len(audio) for audio in sounds.values()]
        if max(lengths) - min(lengths) <= CODEC_FRAMES:
            sounds = {name: audio[: min(lengths)] for name, audio in sounds.items()}
        for name, audio in sounds.items():
            samples = np.round(audio * 2**15).astype(np.int16)  # decoded to 16 bit by the package
            soundfile.write(part / f"{name}.flac", samples, int(track.rate), "PCM_16")
        (part / STAMP).write_text(source, encoding="utf-8")
        if folder.exists():
            outdated = folder.with_name(f".{folder.name}.{os.getpid()}.old.part")
            replace_file(folder, outdated)
            shutil.rmtree(outdated, ignore_errors=True)
        replace_file(part, folder)
    except OSError as error:
        if not (folder / STAMP).is_file():  # else another process was faster
            raise UserError(f"'{folder}' cannot be written ({error}); copy MUSDB18 to a folder of yours") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
