"""Whether a GPU computes what a CPU computes, and how fast it trains and separates, in about two minutes:

    python -m benchmarks.gpu --output gpu.json

The released model separates `data/demo` in float32 on both. Then the steps of `--config` are timed in float32, bf16 and
compiled bf16, on synthetic songs: with all that makes a batch, and the optimizer's step alone. Their operations
(convolutions and matrix products) per second stand beside the rate of a matrix product in bf16 in the same run. What
does not fit into memory is said so and left out. Prints Markdown; `--output` keeps the numbers as JSON, each as soon as
it is there: compiling, which comes last, may take longer than one likes to pay for.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

import torch

from diffvocsep.audio import read
from diffvocsep.config import Config, load_config
from diffvocsep.evaluation.report import table
from diffvocsep.separator import Separator
from diffvocsep.training.backends import Backend
from diffvocsep.training.trainer import Trainer
from diffvocsep.util.atomic import write_atomic
from diffvocsep.util.cli import main
from diffvocsep.util.device import resolve_device
from diffvocsep.util.errors import UserError
from diffvocsep.util.released import released_weights

from .train_step import about, fastest, flops, make_parser, matrix_product, seconds, settings, sizes, synchronize

DEMO = Path(__file__).parents[1] / "data" / "demo" / "song.ogg"
MINUTE = 60.0  # s of song whose separation is timed
WAYS = {  # of training -> train.amp, train.compile
    "float32": ("none", False), "bf16": ("bf16", False), "bf16, compile": ("bf16", True),
}  # fmt: skip
WARM_UP = 3  # steps that do not count, the first compiles
COLUMNS = ("s of audio / s", "optimizer alone", "first step, s", "TFLOP/s", "of a matrix product", "peak, GiB")


@contextmanager
def exact(device: torch.device):
    """Float32 in all its bits on NVIDIA GPUs, which by default leave out 13 of 23 in convolutions."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def parity(model: Path, device: torch.device) -> dict[str, float]:
    """How far the vocals of the demo on `device` lie from those on the CPU, largest sample and dB below the vocals."""
    song, rate = read(DEMO)
    with exact(device):
        there, here = (
            Separator.from_checkpoint(model, where).configured(None, ["train.amp=none"]).separate(song, rate)[0]
            for where in (str(device), "cpu")
        )
    error = there - here
    below = 20 * torch.log10(error.norm().clamp_min(1e-20) / here.norm())
    return {"largest difference": float(error.abs().max()), "dB": float(below)}


def separation(model: Path, device: torch.device, song_seconds: float) -> dict[str, float]:
    """s that a song takes, the median of three, by number format; once in float32 with TF32, as in training."""
    song, rate = read(DEMO)
    length = round(song_seconds * rate)
    song = song.repeat(1, -(-length // song.shape[-1]))[:, :length]
    found = {}
    for amp in ("none", "bf16"):
        separator = Separator.from_checkpoint(model, str(device)).configured(None, [f"train.amp={amp}"])
        separator.separate(song, rate)
        times = []
        for _ in range(3):
            began = time.perf_counter()
            separator.separate(song, rate)
            times.append(time.perf_counter() - began)
        found["float32" if amp == "none" else amp] = median(times)
    return found


def training(config: Config, backend: Backend, steps: int, rate: float) -> dict[str, float]:
    """The columns of one way to train.

    Args:
        rate: of a matrix product, FLOP/s.
    """
    device = backend.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer = Trainer(config, backend, "none")
    with closing(trainer.steps()) as stream:
        batches = next(stream)
        began = time.perf_counter()
        trainer.optimize(batches)
        synchronize(device)
        first = time.perf_counter() - began
        whole = _mean_seconds(lambda: trainer.optimize(next(stream)), device, steps)
        alone = _mean_seconds(lambda: trainer.optimize(batches), device, steps)
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
        trainer.network = trainer.model  # operations are counted as torch sees them, not compiled
        work = flops(lambda: trainer.optimize(batches))
    audio = config.train.batch_size * config.data.segment_seconds
    return dict(zip(COLUMNS, (audio / whole, audio / alone, first, work / alone / 1e12, work / alone / rate, peak),
                    strict=True))  # fmt: skip


def _mean_seconds(step: Callable[[], object], device: torch.device, steps: int) -> float:
    for _ in range(WARM_UP):
        step()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return (time.perf_counter() - began) / steps


def rows(config: Config, backend: Backend, steps: int, rate: float) -> Iterator[tuple[str, dict[str, float] | str]]:
    """Each of `WAYS` with its columns, or why there are none."""
    for name, (amp, compiled) in WAYS.items():
        chosen = load_config(None, [f"train.amp={amp}", f"train.compile={compiled}"], config)
        try:
            found: dict[str, float] | str = training(chosen, backend, steps, rate)
        except torch.OutOfMemoryError:
            found = "does not fit into memory"
        except Exception as error:  # a compiler that is not there must not take the other numbers along
            if not compiled:
                raise
            found = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        yield name, found
        gc.collect()
        if backend.device.type == "cuda":
            torch.cuda.empty_cache()


def report(numbers: dict) -> str:
    """What is said of it all."""
    cells = {name: ["-"] * (len(COLUMNS) - 1) + [row] if isinstance(row, str) else
             [f"{value:.0%}" if column == "of a matrix product" else f"{value:.3g}" for column, value in row.items()]
             for name, row in numbers["training"].items()}  # fmt: skip
    minute = ", ".join(f"{taken:.2f} s in {name}" for name, taken in numbers["separation"].items())
    return "\n\n".join([
        f"{numbers['machine']}\n\nFloat32 here and on the CPU: vocals differ by {numbers['parity']['dB']:.0f} dB, at "
        f"most by {numbers['parity']['largest difference']:.1e}.",
        f"A song of {numbers['song_seconds']:g} s takes {minute}.",
        f"A matrix product in bf16: {numbers['matrix_product'] / 1e12:.3g} TFLOP/s.",
        table(numbers["batch"], COLUMNS, cells),
    ])  # fmt: skip


def run(argv: list[str] | None = None) -> int:
    parser = make_parser("gpu", __doc__, 20)
    parser.add_argument("--model_path", type=Path, help="released weights (default: those that are shipped)")
    parser.add_argument("--seconds", type=float, default=MINUTE, help="of the song that is separated (default: 60)")
    parser.add_argument("--output", type=Path, metavar="JSON", help="file for the numbers")
    args = parser.parse_args(argv)
    if args.rounds < 1 or not 1 <= args.seconds <= 3600:
        raise UserError("--rounds must be at least 1, and --seconds between 1 and 3600")
    device, model = resolve_device(args.device), args.model_path or released_weights()
    numbers: dict = {"song_seconds": args.seconds}

    def keep(name: str, value: object) -> None:
        numbers[name] = value
        print(f"{name}: {value}", flush=True)
        if args.output:
            text = json.dumps(numbers, indent=1)
            write_atomic(args.output, lambda part: part.write_text(text + "\n", encoding="utf-8"))

    keep("machine", about(device))
    keep("parity", parity(model, device))
    backend = Backend(device)
    keep("separation", separation(model, device, args.seconds))
    best = fastest((matrix_product(size, device, torch.bfloat16) for size in sizes(device)[1]), device)
    keep("matrix_product", best.flop / min(seconds(best.step, device) for _ in range(3)))
    with tempfile.TemporaryDirectory(prefix="diffvocsep-") as folder:
        overrides = ["data.synthetic_seconds=8", *args.overrides, "data.dataset=synthetic", "train.max_minutes=1000"]
        config = settings(args.config, overrides, folder)
        keep("batch", f"batch of {config.train.batch_size} x {config.data.segment_seconds:g} s")
        trained: dict[str, dict[str, float] | str] = {}
        for way, columns in rows(config, backend, args.rounds, numbers["matrix_product"]):
            trained[way] = columns
            keep("training", trained)
    print(report(numbers))
    return 0


if __name__ == "__main__":
    main(run)
