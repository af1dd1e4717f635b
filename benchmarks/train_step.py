"""How long a training step takes, and how much of what this device can do it uses:

    python -m benchmarks.train_step

Beside the default network stands `diffusers.UNet2DModel` with the same channels, blocks and input (the same patches of
the spectrogram, folded into channels). The limits are the fastest 3x3 convolution, forward, and the fastest matrix
product among several shapes. All of one number format takes turns, round after round: a busy machine slows all of it
alike. A cell is the median over the rounds, with quartiles in brackets; ratios and shares are taken within each round.
Prints Markdown.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffvocsep.config import Config, load_config
from diffvocsep.evaluation.report import spread, table
from diffvocsep.training.backends import Backend
from diffvocsep.training.trainer import Trainer
from diffvocsep.util.cli import Parser, main
from diffvocsep.util.device import autocast, device_name, fast_bf16, resolve_device

FORMATS = {"float32": None, "bf16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
COLUMNS = ("ms a step", "ms per s of audio", "times our network", "GFLOP a step", "GFLOP/s",
           "of a convolution's", "of a matrix product's", "memory, GiB")  # fmt: skip
SHAPES = ((64, 128, 128), (128, 64, 64), (256, 32, 64), (512, 32, 32))  # channels, frames, bins
BATCH, SIZES, CALLS = 4, (512, 1024), 1  # items a convolution, rows of a square matrix, calls before the clock is read
FASTER = 64, (4096, 8192), 20  # the same on accelerators, where a call must be long and launching it must not count
WARM_UP = 2  # rounds that do not count


class Work(NamedTuple):
    step: Callable[[], object]
    flop: float  # of one call: convolutions and matrix products
    memory: float | None = None  # GiB


def sizes(device: torch.device) -> tuple[int, tuple[int, ...], int]:
    return (BATCH, SIZES, CALLS) if device.type == "cpu" else FASTER


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """Of one call."""
    *_, calls = sizes(device)
    synchronize(device)
    began = time.perf_counter()
    for _ in range(calls):
        step()
    synchronize(device)
    return (time.perf_counter() - began) / calls


def in_turn(steps: Mapping[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of one call of each step, `(rounds,)`: in every round each has its turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(WARM_UP + rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, device))
    return {name: np.array(column[WARM_UP:]) for name, column in times.items()}


def flops(step: Callable[[], object]) -> int:
    """Of convolutions and matrix products: forward, backward and, where it is in the step, Muon's."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def memory(step: Callable[[], object], device: torch.device) -> float:
    """GiB: on an NVIDIA GPU the most that a step takes beside what lies there between two steps (weights, gradients,
    the optimizer's state), elsewhere what is kept for the backward pass."""
    if device.type == "cuda":
        step()  # after which everything is compiled, tuned and in its place
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**30
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(size for size, _ in kept.values()) / 2**30


def convolution(shape: tuple[int, int, int], layout: torch.memory_format, device: torch.device,
                dtype: torch.dtype | None) -> Work:  # fmt: skip
    """3x3, forward, as many channels out as in."""
    channels, frames, bins = shape
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device, dtype=dtype).requires_grad_(False)
    layer = layer.to(memory_format=layout)
    x = torch.randn(sizes(device)[0], channels, frames, bins, device=device, dtype=dtype).to(memory_format=layout)
    return Work(lambda: layer(x), 2 * 9 * channels * x.numel())


def matrix_product(size: int, device: torch.device, dtype: torch.dtype | None) -> Work:
    x = torch.randn(size, size, device=device, dtype=dtype)
    return Work(lambda: x @ x, 2 * size**3)


def fastest(candidates: Iterable[Work], device: torch.device) -> Work:
    """The one of the highest rate."""
    works = {str(i): work for i, work in enumerate(candidates)}
    times = in_turn({name: work.step for name, work in works.items()}, device, 3)
    return max(works.items(), key=lambda item: item[1].flop / np.median(times[item[0]]))[1]


def limits(device: torch.device, dtype: torch.dtype | None) -> dict[str, Work]:
    return {
        "a 3x3 convolution": fastest((convolution(*how, device, dtype) for how in product(SHAPES, LAYOUTS.values())),
                                     device),
        "a matrix product": fastest((matrix_product(size, device, dtype) for size in sizes(device)[1]), device),
    }  # fmt: skip


def network_inputs(config: Config, shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Noise for x_t and the mixture, `(B, C, F, T)` each, and the last timestep, `(B,)`."""
    x_t, mixture = torch.randn(2, config.train.batch_size, *shape, device=device)
    return x_t, mixture, torch.full((len(x_t),), config.diffusion.timesteps - 1, device=device)


def network_step(model: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype | None,
                 backend: Backend) -> Callable[[], None]:  # fmt: skip
    """Forward, backward and AdamW (Muon's products are not the network's), without data and spectrograms."""
    optimizer = backend.optimizer("adamw", model.parameters(), 1e-6, 0.0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(inputs[0].device, dtype):
            output = model(*inputs)
        output.float().square().mean().backward()
        optimizer.step()

    return step


def steps(config: Config, backend: Backend, dtype: torch.dtype | None) -> dict[str, Callable[[], object]]:
    """What is compared, for the layout and the number format of `config`, compiled if it says so."""
    from .diffusers_unet import DiffusersUNet  # gpu.py uses this module, too, and needs no diffusers

    trainer = Trainer(config, backend, "none")
    batches = next(trainer.steps())
    inputs = network_inputs(config, trainer.objective.shape(), backend.device)
    theirs = DiffusersUNet(config).to(backend.device)
    if config.train.channels_last:
        theirs = theirs.to(memory_format=torch.channels_last)
    theirs = torch.compile(theirs) if config.train.compile else theirs
    return {
        "ours, network alone": network_step(trainer.network, inputs, dtype, backend),
        "diffusers, network alone": network_step(theirs, inputs, dtype, backend),
        "ours, training step without data": lambda: trainer.optimize(batches),
    }


def cells(work: Work, times: np.ndarray, audio: float, ours: np.ndarray, best: Sequence[np.ndarray]) -> list[str]:
    """A row of the table.

    Args:
        times: s of a step in every round.
        audio: s of audio in a step.
        ours: s of a step of our network, in the same rounds.
        best: the limits, FLOP/s in the same rounds.
    """
    rate = work.flop / times
    kept = "-" if work.memory is None else f"{work.memory:.2f}"
    return [f"{1e3 * np.median(times):.1f}", spread(1e3 * times / audio), spread(times / ours),
            f"{work.flop / 1e9:.1f}", f"{np.median(rate) / 1e9:.1f}",
            *(f"{np.median(rate / limit):.0%}" for limit in best), kept]  # fmt: skip


def measure(config: Config, backend: Backend, name: str, ways: Iterable[tuple[str, bool]],
            rounds: int) -> dict[str, list[str]]:  # fmt: skip
    """Rows of the number format `name`, for each way: a layout, and whether it is compiled."""
    device, dtype = backend.device, FORMATS[name]
    bounds = limits(device, dtype)
    options = [f"train.amp={'bf16' if dtype else 'none'}", "train.channels_last=false", "train.compile=false"]
    plain = load_config(None, options, config)
    counts = {who: flops(step) for who, step in steps(plain, backend, dtype).items()}  # the same in all ways
    works: dict[tuple[str, str], Work] = {}
    for layout, compiled in ways:
        last = layout == "channels_last"
        label = f"{name}{', channels_last' if last else ''}{', compile' if compiled else ''}"
        chosen = load_config(None, [f"train.channels_last={last}", f"train.compile={compiled}"], plain)
        for who, step in steps(chosen, backend, dtype).items():
            kept = memory(step, device) if device.type == "cuda" or not compiled else None
            works[who, label] = Work(step, counts[who], kept)
    everything = {f"limit, {who}": work.step for who, work in bounds.items()}
    everything |= {f"{who}: {label}": work.step for (who, label), work in works.items()}
    times = in_turn(everything, device, rounds)
    best = [work.flop / times[f"limit, {who}"] for who, work in bounds.items()]
    rows = {f"limit, {who}: {name}": ["", "", "", "", f"{np.median(rate) / 1e9:.1f}",
                                      *(f"{np.median(rate / limit):.0%}" for limit in best), ""]
            for who, rate in zip(bounds, best, strict=True)}  # fmt: skip
    audio = config.train.batch_size * config.data.segment_seconds
    for (who, label), work in works.items():
        ours = times[f"ours, network alone: {label}"]
        rows[f"{who}: {label}"] = cells(work, times[f"{who}: {label}"], audio, ours, best)
    return rows


def about(device: torch.device) -> str:
    """What a table says of the machine."""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, on {device_name(device)}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, load average {load}"
    )


def settings(path: str | None, overrides: Sequence[str], folder: str) -> Config:
    """The configuration of a training run on synthetic songs that writes below `folder`, always of one batch a step."""
    paths = [f"log.{key}='{(Path(folder) / key).as_posix()}'" for key in ("tb_log_dir", "checkpoint_dir")]
    return load_config(path, ["data.dataset=synthetic", "data.synthetic_songs=2", "train.val_batches=1",
                              *overrides, "train.accumulate=1", *paths])  # fmt: skip


def make_parser(prog: str, description: str | None, rounds: int) -> Parser:
    """The options that all measurements of a training step have."""
    parser = Parser(prog=f"python -m benchmarks.{prog}", description=description)
    parser.add_argument("--config", default=None, help="YAML file (default: the built-in defaults)")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"that count (default: {rounds})")
    parser.add_argument("--device", default="auto")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser


def run(argv: list[str] | None = None) -> int:
    parser = make_parser("train_step", __doc__, 9)
    parser.add_argument("--only", choices=FORMATS, help="number format (default: those that the hardware has)")
    parser.add_argument("--layout", choices=LAYOUTS, help="memory layout (default: both)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    args = parser.parse_args(argv)

    device = resolve_device(args.device)
    print(about(device), end="\n\n")
    names = [args.only] if args.only else [name for name, dtype in FORMATS.items() if not dtype or fast_bf16(device)]
    ways = list(product([args.layout] if args.layout else LAYOUTS, (False,) if args.no_compile else (False, True)))
    rows: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="diffvocsep-") as folder:
        config, backend = settings(args.config, args.overrides, folder), Backend(device)
        for name in names:
            torch.compiler.reset()  # it compiles the same function only so often
            rows |= measure(config, backend, name, ways, args.rounds)
    title = f"batch of {config.train.batch_size} x {config.data.segment_seconds:g} s, {args.rounds} rounds"
    print(table(title, COLUMNS, rows))
    return 0


if __name__ == "__main__":
    main(run)
