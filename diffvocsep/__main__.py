"""Take the vocals out of songs.

diffvocsep song.mp3 ...        writes song_vocals.wav and song_instrumental.wav beside each song
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import __version__
from .util.cli import main
from .util.errors import UserError
from .util.released import released_weights


def run(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="diffvocsep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("songs", nargs="+", type=Path, metavar="SONG")
    parser.add_argument("--model_path", type=Path, help="checkpoint (default: the released weights)")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | mps (default: auto)")
    parser.add_argument("--version", action="version", version=f"diffvocsep {__version__}")
    args = parser.parse_args(argv)
    missing = next((song for song in args.songs if not song.exists()), None)
    if missing:
        raise UserError(f"there is no file '{missing}'; check the path")
    model = args.model_path or released_weights()

    from .batch import separate_file
    from .separator import Separator

    separator, failed = Separator.from_checkpoint(model, args.device), 0
    for song in args.songs:
        vocals, instrumental = (song.with_name(f"{song.stem}_{part}.wav") for part in ("vocals", "instrumental"))
        try:
            separate_file(separator, song, vocals, instrumental, progress=True)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        print(f"{song} -> {vocals}, {instrumental}")
    return 2 if failed else 0


def command() -> None:
    """The entry point of `pip install .`."""
    main(run)


if __name__ == "__main__":
    command()
