"""MUSDB18 as it is distributed, `<root>/train/<artist> - <title>.stem.mp4`, decoded once to MUSDB18-HQ's layout."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from tqdm.auto import tqdm

from ..errors import UserError

if TYPE_CHECKING:
    from musdb import DB, MultiTrack

SUFFIX = ".stem.mp4"


def decoded(root: str | Path) -> Path:
    """The folder `<root>/decoded`, with `<song>/{vocals,drums,bass,other}.flac` of every song in `<root>/train`.

    A song that is not there yet is decoded: a few minutes and 7 GB for the whole dataset, once.

    Raises:
        UserError: no songs, a damaged one, no `musdb` package, no ffmpeg, or a folder that cannot be written.
    """
    root = Path(root)
    songs = [path.name.removesuffix(SUFFIX) for path in (root / "train").glob("*" + SUFFIX)]
    if not songs:
        raise UserError(f"there is no train/*{SUFFIX} in '{root}'; set data.musdb_root to the folder of MUSDB18")
    target = root / "decoded"
    missing = {song for song in songs if not (target / song).is_dir()}
    if missing:
        tracks = [track for track in _open(root) if track.name in missing]
        for track in tqdm(tracks, "Decoding MUSDB18", unit="song"):
            _decode(track, target / track.name)
    return target


def _open(root: Path) -> DB:
    try:
        import ffmpeg
        import musdb
    except ImportError:
        raise UserError("data.dataset musdb needs the package musdb; install it with: pip install musdb") from None
    except RuntimeError:  # from stempeg
        raise UserError("data.dataset musdb needs the programs ffmpeg and ffprobe; install ffmpeg") from None
    try:
        return musdb.DB(root=str(root), subsets="train")
    except ffmpeg.Error as error:
        reason = error.stderr.decode(errors="replace").strip().splitlines()[-1]
        raise UserError(f"a song of MUSDB18 cannot be decoded ({reason}); replace it by a whole copy") from None


def _decode(track: MultiTrack, folder: Path) -> None:
    """Write the sources of a track, exactly as decoded, and only then give the folder its name."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        for name, source in track.sources.items():
            samples = np.round(source.audio * 2**15).astype(np.int16)  # decoded to 16 bit by the package
            soundfile.write(part / f"{name}.flac", samples, int(source.rate), "PCM_16")
        part.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            raise UserError(f"'{folder}' cannot be written ({error}); copy MUSDB18 to a folder of yours") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
