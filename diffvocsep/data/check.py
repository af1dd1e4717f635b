"""What is wrong with a dataset, and how much of it there is:

    python -m diffvocsep.data.check --config config.yaml

One line for each song with samples that are not numbers, clipping, a DC offset, or stems that do not add up to the
mixture; then hours, songs and vocal activity of each split. Of the test songs of MUSDB18, where they lie beside the
others, only the vocals are read, for that last line. Nothing is downloaded.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
from tqdm.auto import tqdm

from ..audio import AudioReader
from ..config import Config, load_config
from ..util.cli import Parser, main, print_notes, printable
from ..util.errors import UserError
from . import dev_tracks, train_tracks
from .testsets import songs_to_score
from .tracks import Track

BLOCK = 10.0  # s
FULL_SCALE = 0.99  # where clipping begins
CLIPPED_RUN = 3  # samples in a row of one value, at full scale: no sound does that
MAX_OFFSET = 0.005  # of full scale
RESIDUAL_DB = -15.0  # mixture minus stems; exact stems reach -80, those of lossy files -20
ACTIVE_DB = -40.0  # a second is sung if it is not more below the loudest second of the song


def file_problems(path: Path) -> Iterator[str]:
    """What is wrong with one stem."""
    wrong = flat = frames = 0
    total = 0.0
    try:
        with AudioReader(path) as reader, reader.raw() as file:
            tail = np.zeros((0, file.channels), np.float32)
            for samples in file.blocks(round(BLOCK * file.samplerate), dtype="float32", always_2d=True):
                finite = np.isfinite(samples)
                wrong += int((~finite).sum())
                samples = np.where(finite, samples, 0)
                total = total + samples.sum(axis=0, dtype=np.float64)
                frames += len(samples)
                flat += _flat_tops(np.concatenate([tail, samples]))
                tail = samples[-(CLIPPED_RUN - 1) :]
            announced = file.frames
    except (UserError, soundfile.LibsndfileError) as error:
        yield f"cannot be read ({error})"
        return
    if frames < announced:
        yield f"can be read for {frames} of {announced} samples"
    if wrong:
        yield f"has {wrong} samples that are not finite numbers"
    if flat:
        yield f"is clipped {flat} times"
    offset = np.abs(total / max(frames, 1)).max()
    if offset > MAX_OFFSET:
        yield f"has a DC offset of {offset:.3f}"


def _flat_tops(samples: np.ndarray) -> int:
    """How often `(N, C)` begins to stay at one value near full scale for `CLIPPED_RUN` samples."""
    if len(samples) < CLIPPED_RUN:
        return 0
    same = (samples[1:] == samples[:-1]) & (np.abs(samples[1:]) >= FULL_SCALE)
    runs = np.lib.stride_tricks.sliding_window_view(same, CLIPPED_RUN - 1, axis=0).all(axis=-1)
    return int(runs[0].sum() + (runs[1:] & ~runs[:-1]).sum())


def measure_track(track: Track, sides: Collection[str]) -> tuple[float, float]:
    """The level of mixture minus stems, in dB of the mixture (-inf without one), and the share of the seconds that have
    vocals (nan without them); only `sides` are read."""
    rate = int(track.source_rate)
    residual = power = 0.0
    seconds: list[np.ndarray] = []
    for start in np.arange(0, track.seconds, BLOCK):
        length = min(BLOCK, track.seconds - start)
        waves = {side: track.read(side, start, length, rate).double().numpy() for side in sides}
        if len(waves) == 3:
            residual += np.square(waves["mixture"] - waves["vocals"] - waves["accompaniment"]).sum()
            power += np.square(waves["mixture"]).sum()
        if "vocals" in waves:
            square = np.square(waves["vocals"]).mean(axis=0)
            seconds += [part.mean() for part in np.array_split(square, max(1, round(length)))]
    levels = np.array(seconds)
    sung = float((levels > levels.max() * 10 ** (ACTIVE_DB / 10)).mean()) if len(levels) else np.nan
    return 10 * np.log10(max(residual, 1e-30) / power) if power else -np.inf, sung


def problems(track: Track) -> Iterator[str]:
    """What is wrong with a song's files, one by one."""
    for paths in track.stems.values() if isinstance(track.stems, dict) else ():
        for path in paths:
            for problem in file_problems(path):
                yield f"{path.name} {problem}"


def check_split(name: str, tracks: Sequence[Track]) -> str:
    """Print a line for each song with a problem, unless it is a test song; return the line of the split."""
    test = name == "test"
    hours = bad = 0.0
    active: list[tuple[float, float]] = []
    for track in tqdm(tracks, f"Checking {name}", unit="song", leave=False):
        found = [] if test else list(problems(track))
        try:
            residual, sung = measure_track(track, ["vocals"] if test else track.stems)
        except UserError:  # named already
            residual, sung = -np.inf, np.nan
        if residual > RESIDUAL_DB:
            found.append(f"the stems do not add up to the mixture ({residual:.0f} dB are left)")
        if found:
            tqdm.write(printable(f"{name} '{track.name}': {'; '.join(found)}"))
        hours, bad = hours + track.seconds / 3600, bad + bool(found)
        if not np.isnan(sung):
            active.append((sung * track.seconds, track.seconds))
    share = sum(sung for sung, _ in active) / max(sum(seconds for _, seconds in active), 1e-9)
    return f"{name:<6}{len(tracks):>7}{hours:>9.2f}{f'{100 * share:.0f} %':>14}{'-' if test else f'{bad:.0f}':>15}"


def splits(config: Config) -> Iterable[tuple[str, Sequence[Track]]]:
    """The splits that training sees, and the one that it never sees, if it is there."""
    config = replace(config, data=replace(config.data, cache="none", download=False))  # files, as they are
    yield "train", train_tracks(config)
    yield "dev", dev_tracks(config)
    if config.data.dataset in ("musdb", "musdbhq"):
        root = config.data.musdb_root if config.data.dataset == "musdb" else config.data.musdbhq_root
        try:
            songs = songs_to_score(config.data.dataset, Path(root), "test")
        except UserError as error:
            print_notes([f"there is no line for the test songs: {error}"])
        else:
            yield "test", songs


def run(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m diffvocsep.data.check", description=__doc__)
    parser.add_argument("--config", default="config.yaml", help="YAML file (default: config.yaml)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file")
    args = parser.parse_args(argv)

    lines = [check_split(name, tracks) for name, tracks in splits(load_config(args.config, args.overrides))]
    print(f"{'split':<6}{'songs':>7}{'hours':>9}{'with vocals':>14}{'with problems':>15}")
    print("\n".join(lines))
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    main(run)
