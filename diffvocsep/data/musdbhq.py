"""MUSDB18-HQ: `<root>/train/<artist> - <title>/{vocals,drums,bass,other,mixture}.wav` (Rafii et al. 2019).

Songs of the training half are split as the `musdb` package does it; the test half is never touched.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from .stems import StemTrack, find_tracks

DEV_SONGS = (  # `validation_tracks` of the musdb package
    "Actions - One Minute Smile",
    "Alexander Ross - Goodbye Bolero",
    "ANiMAL - Rockshow",
    "Clara Berry And Wooldog - Waltz For My Victims",
    "Fergessen - Nos Palpitants",
    "James May - On The Line",
    "Johnny Lokke - Promises & Lies",
    "Leaf - Summerghost",
    "Meaxic - Take A Step",
    "Patrick Talbot - A Reason To Leave",
    "Skelpolu - Human Mistakes",
    "Traffic Experiment - Sirens",
    "Triviul - Angelsaint",
    "Young Griffo - Pennies",
)


def musdbhq_tracks(root: str | Path, split: str, cache: Path | None) -> list[StemTrack]:
    """The songs of `split`: `dev` are the fourteen above, `train` the others. They lie in `<root>/train`, or in `root`
    itself if there is neither `train` nor `test` in it.

    Raises:
        UserError: no such folder, or no song of this split in it.
    """
    root = Path(root)
    folder = root / "train" if any((root / half).is_dir() for half in ("train", "test")) else root
    dev = {song.lower() for song in DEV_SONGS}
    tracks = [t for t in find_tracks(folder, cache) if (Path(t.name).name.lower() in dev) == (split == "dev")]
    if not tracks:
        raise UserError(f"'{folder}' has no {split} song of MUSDB18; give the folder of the whole dataset")
    return tracks
