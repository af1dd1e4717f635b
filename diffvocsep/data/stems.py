"""Folders of real tracks: `<root>/.../<track>/vocals.*` and `accompaniment.*`, or any set of instrument stems.

A track may have one side only (a solo voice, an instrumental). What is in `accompaniment.*` is the accompaniment; where
there is none, it is the sum of all other stems (`drums.wav`, `bass.wav`, ...) except `vocals` and `mixture`; names
among them that look like a voice or a whole song, such as `lead_vocals.wav` or `mix.wav`, are refused; beside an
`accompaniment.*` without `vocals.*`, those that look like a voice are.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..audio import AudioReader, read, resample
from ..audio.input_formats import STEM_ENDINGS
from ..util.atomic import remove_leftovers, require_folder, write_atomic
from ..util.errors import UserError, size
from ..util.folders import walk
from ..util.threads import in_threads
from .tracks import SIDES, Track

CHANNELS = 2  # of files with more, the first two are read
FULL_SCALE = 16384  # of 16 bit; leaves 6 dB above 1.0, which float stems and lossy decoders may reach
# Names of files that mean a voice, or the whole song; such a file is no instrument.
VOICE = re.compile(r"voc|vox|보컬|목소리|(^|[\W\d_])(voices?|sing(er|ing)|acapp?ella)([\W\d_]|$)")
NO_VOICE = re.compile(r"(^|[\W\d_])(no|minus|without)[\W\d_]*vo[cx]|instrumental|karaoke|vocoder")
SONG = re.compile(r"[\W\d_]*(full|final)?[\W\d_]*(mix|mixture|song|믹스)[\W\d_]*")
LAYOUT = "<root>/.../<track>/vocals.wav and accompaniment.wav (or drums.wav, bass.wav, ...; also .flac .ogg .mp3)"


class Sound(NamedTuple):
    """What a file holds."""

    frames: int
    rate: int  # Hz
    channels: int

    def shape(self, sample_rate: int) -> tuple[int, int]:
        """`(N, C)` at another sample rate."""
        return -(-self.frames * sample_rate // self.rate), self.channels


class StemTrack:
    """One track on disk.

    Attributes:
        name: the folder, relative to the root.
        group: the folder above it, relative to the root: the set that the track belongs to.
        stems: files of each side; those of one side are added up.
        seconds: length of the shortest file.
        source_rate: lowest sample rate of its files in Hz; nothing above half of it is real.
        sounds: what each file holds.
    """

    def __init__(self, folder: Path, root: Path, cache: Path | None, names: Collection[str] | None = None) -> None:
        """`names` are those of the files that count, without suffix; all, if it is not given."""
        files = sorted(f for f in folder.iterdir() if is_audio(f.relative_to(folder)))
        files = [f for f in files if names is None or f.stem.lower() in names]
        named = {side: [f for f in files if f.stem.lower() == side] for side in ("vocals", "accompaniment", "mixture")}
        others = [f for f in files if f.stem.lower() not in named]
        if not (named["accompaniment"] and named["vocals"]):
            for path in others:
                _require_instrument(path, counts=not named["accompaniment"])
        self.name, self.group = folder.relative_to(root).as_posix(), folder.parent.relative_to(root).as_posix()
        sides = named | {"accompaniment": named["accompaniment"] or others}
        self.stems = {side: paths for side, paths in sides.items() if paths}
        for paths in self.stems.values():
            if len({path.stem.lower() for path in paths}) < len(paths):
                found = ", ".join(path.name for path in paths)
                raise UserError(f"'{folder}' has a stem in more than one file ({found}); keep one file of each stem")
        self.sounds = {path: _sound(path) for paths in self.stems.values() for path in paths}
        self.seconds = min(sound.frames / sound.rate for sound in self.sounds.values())
        self.source_rate = min(sound.rate for sound in self.sounds.values())
        self.cache = cache
        self._loudness: dict[str, float] = {}

    def read(self, side: str, start: float, seconds: float, sample_rate: int) -> Tensor:
        """Waveform `(C, round(seconds * sample_rate))` of one side from `start` (s) on, zeros past the end."""
        length = round(seconds * sample_rate)
        total = torch.zeros(1, length)
        for path in self.stems[side]:
            if self.cache:
                first = round(start * sample_rate)
                samples = decode_cached(path, sample_rate, self.cache)[first : first + length]
                crop = torch.from_numpy(samples.astype(np.float32).T) / FULL_SCALE
            else:
                with AudioReader(path) as reader:
                    crop = resample(reader.part(start, seconds), reader.sample_rate, sample_rate)[:, :length]
            total = total + torch.nn.functional.pad(crop[:CHANNELS], (0, length - crop.shape[-1]))
        return total

    def loudness(self, side: str, sample_rate: int) -> float:
        """RMS of one side where it sounds, from twenty looks of a second each; 0 if it never does."""
        if side not in self._loudness:
            starts = np.linspace(0, max(0.0, self.seconds - 1), 20)
            powers = np.array(
                [float(self.read(side, s, min(1, self.seconds), sample_rate).square().mean()) for s in starts]
            )
            self._loudness[side] = float(powers[powers >= 0.01 * powers.max()].mean()) ** 0.5
        return self._loudness[side]


def decode_cached(path: Path, sample_rate: int, cache: Path) -> np.ndarray:
    """Samples `(N, C)` int16 of one file at `sample_rate`, decoded once and then mapped from `cache`.

    Mapped files are shared by all processes and live in the system's page cache. The name holds path, size and time of
    the source: a changed file is decoded anew.
    """
    target = _cache_file(path, sample_rate, cache)
    samples = _map_cache_file(target)
    if samples is None:
        waveform, rate = read(path)
        decoded = (resample(waveform, rate, sample_rate) * FULL_SCALE).round().clamp(-32768, 32767)
        write_atomic(target, lambda part: _save(part, decoded.T.to(torch.int16).numpy()))
        samples = np.load(target, mmap_mode="r")
    return samples


def fill_cache(tracks: Iterable[Track], sample_rate: int) -> None:
    """Decode what is not in the cache yet, of the vocals and accompaniment of those tracks that have one.

    It is done file by file: interrupted, it goes on where it stopped. With nothing to do, it is quick.

    Raises:
        UserError: the disk has no room for it, or a file is damaged.
    """
    missing: dict[Path, tuple[Path, Sound]] = {}
    for track in tracks:
        if isinstance(track, StemTrack) and track.cache:
            for path in (path for side in SIDES for path in track.stems.get(side, ())):
                target = _cache_file(path, sample_rate, track.cache)
                sound = track.sounds[path]
                if _map_cache_file(target, sound.shape(sample_rate)) is None:
                    missing[target] = path, sound
    if not missing:
        return
    cache = next(iter(missing)).parent
    require_folder(cache)
    remove_leftovers(cache, 600)
    for target in filter(Path.is_file, missing):  # of another length than the song
        target.unlink()
    needed = sum(2 * math.prod(sound.shape(sample_rate)) for _, sound in missing.values())
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise UserError(
            f"the decoded songs need another {size(needed)} in '{cache}', where {size(free)} are free; "
            "make room, set data.cache_dir to another disk, or data.cache to none"
        )
    in_threads(decode_cached, [(path, sample_rate, cache) for path, _ in missing.values()], "Decoding songs", "stem")


def _cache_file(path: Path, sample_rate: int, cache: Path) -> Path:
    """Where the decoded samples of a file belong."""
    try:
        stat = path.stat()
    except OSError as error:  # it was there when training began
        raise UserError(f"'{path}' cannot be read any more ({error.strerror}): put it back") from None
    identity = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{sample_rate}"
    return cache / f"{hashlib.sha256(os.fsencode(identity)).hexdigest()[:24]}.npy"


def _map_cache_file(target: Path, shape: tuple[int, int] | None = None) -> np.ndarray | None:
    """What is there, mapped; None if it is not there yet, damaged, or nothing of ours, or not of this `shape`."""
    try:
        samples = np.load(target, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    ours = samples.ndim == 2 and samples.dtype == np.int16 and shape in (None, samples.shape)
    return samples if ours else None


def _save(path: Path, samples: np.ndarray) -> None:
    samples = np.ascontiguousarray(samples)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(samples))
        file.write(samples.data)  # `np.save` hides why the system would write no more


def _sound(path: Path) -> Sound:
    if path.is_fifo():
        raise UserError(f"'{path}' is a pipe, which can be read only once: put a file there")
    with AudioReader(path) as reader:
        return Sound(reader.frames, reader.sample_rate, reader.channels)


def find_tracks(root: str | Path, cache: Path | None) -> list[StemTrack]:
    """All tracks below `root`, sorted by name; `cache` is the folder for what was decoded.

    Raises:
        UserError: no such folder, no track in it, or a file that is no audio.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"there is no folder '{root}'; expected {LAYOUT}")
    folders = track_folders(root)
    if not folders:
        raise UserError(f"no track was found in '{root}'; expected {LAYOUT}")
    return [StemTrack(folder, root, cache) for folder in folders]


def _require_instrument(path: Path, counts: bool) -> None:
    """Raises UserError for a file whose name says that it is a voice or a whole song.

    `counts`: it would be added to the accompaniment. If it would not, only voices are refused: the track has no
    vocals.*, and would lose its only one.
    """
    name = unicodedata.normalize("NFC", path.stem.lower())
    voice, song = VOICE.search(name) and not NO_VOICE.search(name), counts and SONG.fullmatch(name)
    if voice or song:
        side = "vocals" if voice else "mixture"
        fate = "count as accompaniment" if counts else "not be used"
        raise UserError(
            f"'{path}' would {fate}; if it is {side}, name it {side}{path.suffix}, and if not, give it another name"
        )


def track_folders(root: Path) -> list[Path]:
    """The folders below `root` that hold audio, sorted."""
    folders = (folder for folder, _, _ in walk(root) if folder != root)
    return sorted(f for f in folders if any(is_audio(p.relative_to(root)) for p in f.iterdir()))


def is_audio(path: Path) -> bool:
    """By its name, and not hidden: macOS leaves `._vocals.wav` beside the real file on foreign disks."""
    return path.suffix.lower() in STEM_ENDINGS and not any(part.startswith(".") for part in path.parts)
