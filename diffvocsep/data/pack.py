"""Songs as small as a training needs them, for a computer that is far away.

    python -m diffvocsep.data.pack ROOT OUT --rate 22050 --quality 0.6

Every audio file below ROOT becomes an Ogg Vorbis file of the same name at the same place below OUT, at `--rate` Hz.
A network models nothing above `audio.bandwidth`, so twice that and a little is rate enough. Other files are left out.
What stands in OUT already is kept, so that an interrupted packing goes on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from ..audio import read, resample
from ..util.atomic import write_atomic
from ..util.cli import Parser, main
from ..util.errors import UserError
from ..util.folders import walk
from ..util.threads import in_threads
from .stems import is_audio

BLOCK = 1 << 16  # samples a call: libsndfile's encoder overflows its stack on longer ones


def pack(source: Path, target: Path, rate: int, quality: float) -> None:
    """`source` as Ogg Vorbis at `rate` Hz, or at its own where that is lower; `quality` from 0 to 1.

    Raises:
        UserError: a file that cannot be read.
    """
    waveform, own = read(source)
    rate = min(rate, own)
    samples = np.ascontiguousarray(resample(waveform, own, rate).T.numpy())
    write_atomic(target, lambda part: write_vorbis(part, samples, rate, quality))


def write_vorbis(path: Path, samples: np.ndarray, rate: int, quality: float) -> None:
    """Samples `(N, C)` as Ogg Vorbis at `rate` Hz; `quality` from 0 to 1."""
    with soundfile.SoundFile(path, "w", rate, samples.shape[1], format="OGG", subtype="VORBIS",
                             compression_level=1 - quality) as file:  # fmt: skip
        for start in range(0, len(samples), BLOCK):
            file.write(samples[start : start + BLOCK])


def places(root: Path, out: Path) -> dict[Path, Path]:
    """Each audio file that a training would find below `root`, and where it goes.

    Raises:
        UserError: there is none, two would become one, or `out` lies in `root`.
    """
    if out.resolve().is_relative_to(root.resolve()):
        raise UserError(f"'{out}' lies in '{root}' and would be packed itself; give another folder")
    paths = sorted(folder / name for folder, _, names in walk(root) for name in names)
    found = {path: out / path.relative_to(root).with_suffix(".ogg")
             for path in paths if is_audio(path.relative_to(root)) and path.is_file()}  # fmt: skip
    if not found:
        raise UserError(f"there is no audio file below '{root}'; give a folder of songs")
    sources: dict[Path, Path] = {}
    for source, target in found.items():
        if sources.setdefault(target, source) != source:
            raise UserError(f"'{sources[target]}' and '{source}' would both become '{target}'; rename one of them")
    return found


def run(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m diffvocsep.data.pack", description="The same songs, small (Ogg Vorbis).")
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of songs")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the packed songs, in the same layout")
    parser.add_argument("--rate", type=int, default=22050, help="sample rate in Hz (default: 22050)")
    parser.add_argument("--quality", type=float, default=0.6, help="of Vorbis, 0 to 1 (default: 0.6)")
    args = parser.parse_args(argv)
    if not 8000 <= args.rate <= 192000:
        raise UserError(f"--rate is {args.rate} but must be between 8000 and 192000")
    if not 0 <= args.quality <= 1:
        raise UserError(f"--quality is {args.quality} but must be between 0 and 1")
    found = places(args.root, args.out)
    todo = [(source, target) for source, target in found.items() if not target.exists()]
    in_threads(pack, [(*paths, args.rate, args.quality) for paths in todo], "Packing", "file")
    before, after = (sum(path.stat().st_size for path in paths) / 1e6 for paths in (found, found.values()))
    print(f"{args.out}: {len(found)} files, {before:.1f} -> {after:.1f} MB")
    return 0


if __name__ == "__main__":
    main(run)
