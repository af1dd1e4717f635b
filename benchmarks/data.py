"""How fast training segments come, of each kind of data and each `data.cache`, and whether training waits for them:

    python -m benchmarks.data

Songs are made from the stem file that the package `stempeg` ships, a minute and a half each: as MUSDB18, as MUSDB18-HQ,
and as folders of stems. Needs `musdb` and ffmpeg. Prints Markdown.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from diffvocsep.config import Config, load_config
from diffvocsep.data import Segments, train_tracks
from diffvocsep.data.loader import load_segments, with_noise
from diffvocsep.training.trainer import Trainer
from diffvocsep.util.cli import Parser, main
from diffvocsep.util.device import resolve_device

SONGS = ("A - One", "B - Two", "Leaf - Summerghost")  # the last one is of the validation set
CROPS = 20  # that the comparison with the musdb package draws, at least


def make_songs(root: Path, repeats: int) -> None:
    """The same songs in three layouts: `root/musdb`, `root/musdbhq`, and `root/stems` with `root/stems_dev`."""
    import stempeg

    from diffvocsep.data.musdb import decode_musdb

    train = root / "musdb" / "train"
    train.mkdir(parents=True)
    command = ["ffmpeg", "-v", "error", "-stream_loop", str(repeats - 1), "-i", stempeg.example_stem_path()]
    subprocess.run([*command, "-map", "0:a", "-c", "copy", str(train / f"{SONGS[0]}.stem.mp4")], check=True)
    for song in SONGS[1:]:
        shutil.copy(train / f"{SONGS[0]}.stem.mp4", train / f"{song}.stem.mp4")
    for song, folder in decode_musdb(root / "musdb").items():
        stems = {path.stem: soundfile.read(path, dtype="float32") for path in folder.glob("*.flac")}
        hq = root / "musdbhq" / "train" / song
        two = root / ("stems_dev" if song == SONGS[-1] else "stems") / song
        for path in (hq, two):
            path.mkdir(parents=True)
        for name, (samples, rate) in stems.items():
            soundfile.write(hq / f"{name}.wav", samples, rate, "PCM_16")
        rest = sum(stems[name][0] for name in ("drums", "bass", "other"))
        soundfile.write(two / "vocals.wav", *stems["vocals"], "PCM_16")
        soundfile.write(two / "accompaniment.wav", rest, stems["vocals"][1], "FLOAT")


def settings(root: Path, dataset: str, cache: str, workers: int = 0) -> Config:
    """The default configuration, with data and logs below `root`."""
    paths = {"data.root": "stems", "data.dev_root": "stems_dev", "data.musdb_root": "musdb", "data.cache_dir": "cache",
             "data.musdbhq_root": "musdbhq", "log.tb_log_dir": "tb", "log.checkpoint_dir": "checkpoints"}  # fmt: skip
    overrides = [f"{key}='{(root / name).as_posix()}'" for key, name in paths.items()]
    overrides += [f"data.dataset={dataset}", f"data.cache={cache}", f"data.workers={workers}", "data.synthetic_songs=8"]
    return load_config(None, [*overrides, "train.max_steps=100000", "train.val_batches=1"])


def warm(config: Config) -> Segments:
    """The training segments, with everything decoded, made or measured that is so only once."""
    segments = Segments(train_tracks(config), config, 10**6)
    for track in segments.tracks:
        for side in ("vocals", "accompaniment"):
            track.loudness(side, config.audio.sample_rate)
    return segments


def cpu_time() -> float:
    """Seconds that this process and the programs that it ran to their end have computed: what a clock would show on a
    machine with nothing else to do."""
    return sum(os.times()[:4])


def rate(draw: Callable[[], int], seconds: float, clock: Callable[[], float], least: int = 0) -> float:
    """Items per second of `draw`, which returns how many it made: over at least `seconds` and `least` items. The first
    call does not count."""
    draw()
    began, made = clock(), 0
    while clock() - began < seconds or made < least:
        made += draw()
    return made / (clock() - began)


def on(device: torch.device, batch: dict[str, Tensor]) -> int:
    """Wait until a batch is ready; how many segments it has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return len(batch["index"])


def waiting(trainer: Trainer, stream: Iterator[dict[str, Tensor]], steps: int) -> tuple[float, float]:
    """Mean seconds of a step, and the share of all seconds spent waiting for batches; after two steps of warm-up."""
    times, waits = [], []
    stream = trainer.backend.batches(with_noise(stream, trainer.objective.shape(), trainer.config.train.seed))
    for _ in range(steps + 2):
        began = time.perf_counter()
        batch = next(stream)
        waits.append(time.perf_counter() - began)
        trainer.optimize([batch])
        on(trainer.device, batch)
        times.append(time.perf_counter() - began)
    return statistics.mean(times[2:]), sum(waits[2:]) / sum(times[2:])


def compare(root: Path, seconds: float, clock: Callable[[], float]) -> tuple[float, dict[str, float]]:
    """Crops (vocals and accompaniment, 3 s, unaltered) per second, from `CROPS` of them at least: by the musdb package,
    and by each cache."""
    import musdb

    songs = musdb.DB(root=str(root / "musdb"), subsets="train", split="train").tracks
    rng = np.random.default_rng(0)
    length = Config().data.segment_seconds

    def theirs() -> int:
        song = songs[rng.integers(len(songs))]
        song.chunk_duration, song.chunk_start = length, rng.uniform(0, song.duration - length)
        for target in ("vocals", "accompaniment"):
            missing = length * 44100 - len(song.targets[target].audio)
            assert -1024 < missing <= 0  # it may give the rest of an AAC frame, too
        return 1

    ours = {}
    for cache in ("none", "memory"):
        tracks = warm(settings(root, "musdb", cache)).tracks

        def read(tracks=tracks) -> int:
            track = tracks[rng.integers(len(tracks))]
            start = rng.uniform(0, track.seconds - length)
            for side in ("vocals", "accompaniment"):
                assert track.read(side, start, length, 44100).shape == (2, length * 44100)
            return 1

        ours[cache] = rate(read, seconds, clock, CROPS)
    return rate(theirs, seconds, clock, CROPS), ours


def run(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of a rate (default: 5)")
    parser.add_argument("--steps", type=int, default=8, help="of each measurement of training (default: 8, 0: none)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes, where there are any (default: 2)")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of computation, for busy machines; no workers")
    parser.add_argument("--repeats", type=int, default=15, help="of the six seconds in a song (default: 15)")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)

    device, clock = resolve_device(args.device), cpu_time if args.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory(prefix="diffvocsep-") as folder:
        root = Path(folder)
        make_songs(root, args.repeats)
        trainer = Trainer(settings(root, "musdbhq", "memory"), device, "none")
        load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
        print(f"{os.cpu_count()} cores, {platform.machine()}, training on {device}, {torch.get_num_threads()} threads, "
              f"torch {torch.__version__}, load average {load}")  # fmt: skip
        if args.steps:
            batch = next(load_segments(trainer.segments, 0, device))
            alone, _ = waiting(trainer, iter([batch] * (args.steps + 3)), args.steps)
            size = trainer.config.train.batch_size
            print(f"the default model takes {alone:.3f} s for a step of {size} segments: {size / alone:.1f} segments/s")
        print("seconds are those of computation" if args.cpu_time else "seconds are those of the clock", end="\n\n")
        print("| `data.dataset` | `data.cache` | `data.workers` | segments/s | step, s | waiting for data |")
        print("|---|---|---|---|---|---|")
        for dataset in ("synthetic", "stems", "musdbhq", "musdb"):
            for cache in ("none", "memory", "device") if dataset != "synthetic" else ("memory", "device"):
                for workers in (0, args.workers) if cache != "device" and not args.cpu_time else (0,):
                    segments = warm(settings(root, dataset, cache, workers))
                    stream = load_segments(segments, 0, device)
                    speed = rate(lambda stream=stream: on(device, next(stream)), args.seconds, clock)
                    trained = " | "
                    if args.steps:
                        step, wait = waiting(trainer, stream, args.steps)
                        trained = f"{step:.3f} | {100 * wait:.1f} %"
                    print(f"| {dataset} | {cache} | {workers} | {speed:.1f} | {trained} |", flush=True)
                    del stream
        theirs, ours = compare(root, args.seconds, clock)
        print("\n| 3 s of vocals and accompaniment from MUSDB18's stem files | crops/s | times the package |")
        print("|---|---|---|")
        print(f"| the musdb package: `chunk_start`, `chunk_duration`, `targets` | {theirs:.2f} | 1 |")
        for cache, crops in ours.items():
            print(f"| `data.cache: {cache}` | {crops:.0f} | {crops / theirs:.0f} |")
    return 0


if __name__ == "__main__":
    main(run)
