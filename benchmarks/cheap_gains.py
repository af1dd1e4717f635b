"""What the usual tricks at separation time gain, and what they cost:

    python -m benchmarks.cheap_gains --root DEV

Each way separates clips of the songs in `DEV` (global SDR of the vocals, dB) and is compared with the plain separation
clip by clip, for each set of songs: mean difference with a 95 % bootstrap interval, and how many times as long it
takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from diffvocsep.evaluation.clips import Clip
from diffvocsep.evaluation.metrics import sdr
from diffvocsep.evaluation.report import table
from diffvocsep.separator import Separator
from diffvocsep.util.cli import main

from .dev_scores import dev_clips, paired, references, set_means, set_of

RELEASED = Path(__file__).parents[1] / "checkpoints" / "pretrained.safetensors"
SECONDS, EVERY = 10.0, 4  # of a clip; of long songs every fourth counts

Way = Callable[[Tensor, int], Tensor]  # mixture (C, N) and its sample rate in Hz -> vocals


def ways(separator: Separator) -> dict[str, Way]:
    """The plain one first."""

    def plain(mixture: Tensor, rate: int) -> Tensor:
        return separator.separate(mixture, rate)[0]

    def under(override: str) -> Way:
        other = separator.configured(overrides=[override])
        return lambda mixture, rate: other.separate(mixture, rate)[0]

    def twice(there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Way:
        """The mean of two separations, one of them of the altered song."""
        return lambda mixture, rate: (plain(mixture, rate) + back(plain(there(mixture), rate))) / 2

    def shifted(mixture: Tensor, rate: int) -> Tensor:
        frame = round(separator.config.audio.hop_length * rate / separator.config.audio.sample_rate)
        return twice(lambda x: F.pad(x, (frame, 0)), lambda x: x[:, frame:])(mixture, rate)

    return {
        "as it is": plain,
        "chunks of 3 s": under("separation.chunk_seconds=3"),
        "margins of 3 s": under("separation.margin_seconds=3"),
        "mean of 4 samples": under("diffusion.samples=4"),
        "mean with left and right exchanged": twice(lambda x: x.flip(0), lambda x: x.flip(0)),
        "mean with the polarity reversed": twice(lambda x: -x, lambda x: -x),
        "mean with the song a frame later": shifted,
    }


def measure(chosen: dict[str, Way], clips: list[Clip]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Scores `(clips,)` and seconds of each way; clip by clip, so that a busy machine slows all alike."""
    next(iter(chosen.values()))(clips[0].mixture, clips[0].sample_rate)  # the first separation of a process is slow
    scores, seconds = {name: [] for name in chosen}, dict.fromkeys(chosen, 0.0)
    for clip in tqdm(clips, unit="clip"):
        for name, way in chosen.items():
            began = time.perf_counter()
            vocals = way(clip.mixture, clip.sample_rate)
            seconds[name] += time.perf_counter() - began
            scores[name].append(sdr(clip.vocals, vocals))
    return {name: np.array(values) for name, values in scores.items()}, seconds


def rows(scores: dict[str, np.ndarray], seconds: dict[str, float], sets: list[str]) -> dict[str, list[str]]:
    """Lines of the table from scores `(clips,)` in dB and times in s; `sets` names the set of every clip."""
    plain, took = next(iter(scores.values())), next(iter(seconds.values()))
    lines: dict[str, list[str]] = {}
    for name, values in scores.items():
        lines[name] = [f"{seconds[name] / took:.1f}"]
        for one in sorted(set(sets)):
            here = np.array(sets) == one
            against = f" {paired((values - plain)[here])[0]}" if len(lines) > 1 else ""
            lines[name].append(f"{values[here].mean():.2f}{against}")
    return lines


def run(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, type=Path, help="songs that decide")
    parser.add_argument("--model_path", type=Path, default=RELEASED)
    args = parser.parse_args(argv)
    clips = dev_clips(args.root, SECONDS, EVERY)
    sets, separator = [set_of(clip.name) for clip in clips], Separator.from_checkpoint(args.model_path, "cpu")
    untrained = references(separator.config, clips)
    lines = {name: ["", *(f"{value:.2f}" for value in set_means(scores))] for name, scores in untrained.items()}
    lines |= rows(*measure(ways(separator), clips), sets)
    title = f"global SDR of the vocals, dB, mean of {len(clips)} clips"
    print(table(title, ("times as long", *sorted(set(sets))), lines))
    return 0


if __name__ == "__main__":
    main(run)
