"""MUSDB18-HQ: `<root>/train/<artist> - <title>/{mixture,drums,bass,vocals,other}.wav` (Rafii et al. 2019).

Songs of the training half are split as the `musdb` package does it; training never touches the test half, also where
all songs lie in one folder. A song that is broken is named and left out.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ..audio import AudioReader
from ..audio.input_formats import STEM_ENDINGS
from ..util.cli import print_notes
from ..util.device import torchrun_env
from ..util.errors import UserError
from .musdb_songs import DEV_SONGS, TEST_SONGS
from .stems import StemTrack

STEMS = ("vocals", "drums", "bass", "other")
BAD_SHARE = 0.1  # of the songs; with more of them bad, something is wrong with the whole
LAYOUT = "<root>/train/<artist> - <title>/{mixture,drums,bass,vocals,other}.wav, with or without train/"


def musdbhq_tracks(
    root: str | Path, split: str, cache: Path | None, only: Collection[str] | None = None
) -> list[StemTrack]:
    """The songs of `split`: `dev` are the validation songs of the `musdb` package, `train` the others; `test`, for
    evaluation alone, is the folder of that name.

    Args:
        only: names of songs; others in the folder are none.

    Raises:
        UserError: no such folder, no song of this split in it, or more than a tenth of the songs bad.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"there is no folder '{root}'; expected {LAYOUT}")
    half = _half(root, "test" if split == "test" else "train")
    if half is None and split == "test":
        raise UserError(f"there is no folder 'test' in '{root}'; give the folder of MUSDB18-HQ or --split valid")
    half = half or root
    songs = sorted(f for f in half.iterdir() if f.is_dir() and not f.name.startswith("."))
    if split != "test":
        songs = [f for f in songs if f.name.lower() not in TEST_SONGS | {"test"}]  # wherever someone has put them
    if only is not None:
        songs = [f for f in songs if f.name in only]
    bad = {song: problem for song in songs if (problem := _problem(song))}
    found = f"expected {LAYOUT}; found in '{half}': {_contents(half)}"
    if len(bad) > BAD_SHARE * len(songs):
        song, problem = next(iter(bad.items()))
        raise UserError(
            f"{len(bad)} of {len(songs)} songs of MUSDB18 are bad, such as '{song.name}' ({problem}); {found}"
        )
    wanted = [song for song in songs if split == "test" or (song.name.lower() in DEV_SONGS) == (split == "dev")]
    for song in wanted:
        if song in bad and torchrun_env().rank == 0:
            print_notes([f"the song '{song.name}' is left out: {bad[song]}"])
    good = [song for song in wanted if song not in bad]
    if not good:
        raise UserError(f"there is no {split} song of MUSDB18; {found}")
    return [StemTrack(song, half, cache, (*STEMS, "mixture")) for song in good]


def _half(root: Path, name: str) -> Path | None:
    """The folder `name` in `root` or in the only folder in it."""
    folders = [f for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")]
    for parent in [root, *(folders if len(folders) == 1 else [])]:
        for folder in parent.iterdir():
            if folder.name.lower() == name and folder.is_dir():
                return folder
    return None


def _problem(song: Path) -> str:
    """What is wrong with a song, or nothing. Other sample rates are not: they are converted."""
    found = [f for f in sorted(song.iterdir()) if f.suffix.lower() in STEM_ENDINGS and f.name[0] != "."]
    files = {f.stem.lower(): f for f in found}
    missing = [name for name in STEMS if name not in files]
    if missing:
        return f"{', '.join(missing)} missing"
    doubled = [f.name for f in found if f.stem.lower() in (*STEMS, "mixture") and f not in files.values()]
    if doubled:
        return f"{', '.join(doubled)} beside another file of that stem"
    seconds, rates = {}, []
    for name in (*STEMS, *({"mixture"} & files.keys())):
        try:
            with AudioReader(files[name]) as reader:
                seconds[name] = reader.frames / reader.sample_rate
                rates.append(reader.sample_rate)
                reader.part(seconds[name] - 1, 1)  # a FLAC that was cut short announces its old length
        except UserError as error:
            return str(error)
    if max(seconds.values()) - min(seconds.values()) > 1 / min(rates):
        return "lengths differ: " + ", ".join(f"{name} {value:.3f} s" for name, value in seconds.items())
    return ""


def _contents(folder: Path) -> str:
    """A folder in a few words."""
    names = sorted(f.name + "/" * f.is_dir() for f in folder.iterdir() if not f.name.startswith("."))
    if not names:
        return "nothing"
    stems = sum(name.endswith(".stem.mp4") for name in names)
    advice = f" ({stems} are stem files: that is data.dataset musdb)" if stems else ""
    return f"{len(names)} entries, such as {', '.join(names[:3])}{advice}"
