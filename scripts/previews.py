"""The songs of the tables in docs/evaluation.md: MUSDB18's 14 validation songs, or the 12 that chose the released
weights, 7 s of each.

    pip install musdb
    python -m scripts.previews VALID
    python -m scripts.previews DEV/musdb18_7s --songs dev
    python evaluate.py --model_path checkpoints/pretrained.safetensors --dataset stems --root VALID

The package `musdb` fetches the previews of all songs to `data/musdb18` (or `--root`), unless stem files are
there, and decodes them, with ffmpeg. `VALID/<song>/{mixture,vocals,accompaniment}.wav` hold that as 32-bit float, since
the accompaniment is a sum of stems and may pass full scale. Its terms: https://zenodo.org/records/1117372
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from diffvocsep.audio import AudioWriter
from diffvocsep.config import Config
from diffvocsep.data.musdb import SUFFIX, import_musdb
from diffvocsep.data.testsets import musdb_tracks, songs_to_score
from diffvocsep.data.tracks import SIDES, Track
from diffvocsep.util.atomic import require_folder
from diffvocsep.util.cli import Parser, main
from diffvocsep.util.errors import UserError

FILES = ("mixture", *SIDES)
# Of the training half; neither they nor other songs of these artists trained the released weights.
DEV = """Angela Thomas Wade - Milk Cow Blues
BigTroubles - Phantom
Creepoid - OldTree
Giselle - Moss
Helado Negro - Mitad Del Mundo
Night Panther - Fire
Port St Willow - Stay Even
Secret Mountains - High Horse
Strand Of Oaks - Spacestation
The So So Glos - Emergency
Titanium - Haunted Age
Wall Of Death - Femme""".splitlines()


def fetch(root: Path) -> None:
    """Have the previews in `root`, as the package fetches them, if no songs are there.

    Raises:
        UserError: the package or ffmpeg is missing, or the previews do not come.
    """
    if any(root.glob(f"train/*{SUFFIX}")):
        return
    try:
        import_musdb().DB(root=str(root), download=True)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"the previews of MUSDB18 do not come ({error}); try again, or name a folder that has them with --root"
        ) from None


def chosen(root: Path, songs: str) -> Sequence[Track]:
    """The songs `valid` or `dev`, as far as they are in `root`."""
    if songs == "valid":
        return songs_to_score("musdb", root, "valid")
    return [track for track in musdb_tracks(root, "train", None) if track.name in DEV]


def run(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m scripts.previews", description=__doc__)
    parser.add_argument("output", type=Path, metavar="OUT", help="gets a folder for each song")
    parser.add_argument("--songs", choices=["valid", "dev"], default="valid", help="which (default: valid)")
    parser.add_argument("--root", type=Path, default=Path(Config().data.musdb_root), help="where the stem files are")
    args = parser.parse_args(argv)
    require_folder(args.output)
    fetch(args.root)
    songs = chosen(args.root, args.songs)
    if not songs:
        kind = "validation" if args.songs == "valid" else "dev"
        raise UserError(f"none of MUSDB18's {kind} songs is in '{args.root}'; name another folder with --root")
    for song in tqdm(songs, "Decoding", unit="song"):
        (args.output / song.name).mkdir(exist_ok=True)
        for side in FILES:
            waveform = song.read(side, 0, song.seconds, song.source_rate)
            with AudioWriter(args.output / song.name / f"{side}.wav", song.source_rate, len(waveform)) as writer:
                writer.write(waveform)
    print(f"{len(songs)} songs in '{args.output}'")
    return 0


if __name__ == "__main__":
    main(run)
