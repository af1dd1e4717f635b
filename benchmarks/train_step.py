"""How long a training step takes, and how much of what this device can do it uses:

    python -m benchmarks.train_step

The limit is the best rate of a 3x3 convolution, forward, among several shapes, in the same number format, in the same
run. Beside the default network stands `diffusers.UNet2DModel` with the same channels, blocks and input (the same
patches of the spectrogram, folded into channels). Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffvocsep.cli import main
from diffvocsep.config import Config, load_config
from diffvocsep.device import autocast, describe, resolve_device
from diffvocsep.evaluation.report import table
from diffvocsep.trainer import Trainer

FORMATS = {"float32": None, "bf16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
COLUMNS = ("ms a step", "ms per s of audio", "GFLOP a step", "GFLOP/s", "of the limit", "memory, GiB")
SHAPES = ((64, 128, 128), (128, 64, 64), (256, 32, 64), (512, 32, 32))  # channels, frames, bins


def seconds(step: Callable[[], object], device: torch.device, budget: float) -> float:
    """Median time of `step`, over about `budget` s and at least three times; the first two do not count."""
    times: list[float] = []
    while len(times) < 5 or sum(times[2:]) < budget:
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def flops(step: Callable[[], object]) -> int:
    """Of convolutions and matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def memory(step: Callable[[], object], device: torch.device) -> float:
    """GiB: on a GPU the most that tensors take at a time, on a CPU what is kept for the backward pass."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) / 2**30
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(size for size, _ in kept.values()) / 2**30


def best_convolution(device: torch.device, dtype: torch.dtype | None, budget: float) -> float:
    """FLOP/s."""
    rates = []
    for (channels, frames, bins), layout in product(SHAPES, LAYOUTS.values()):
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device, dtype=dtype)
        convolution = convolution.to(memory_format=layout)
        x = torch.randn(4, channels, frames, bins, device=device, dtype=dtype).to(memory_format=layout)
        with torch.no_grad():
            rates.append(2 * 9 * channels * x.numel() / seconds(lambda c=convolution, x=x: c(x), device, budget))
    return max(rates)


class Diffusers(nn.Module):
    """UNet2DModel on the same patches of `channels` images, called like ours."""

    def __init__(self, channels: int, config: Config) -> None:
        from diffusers import UNet2DModel

        super().__init__()
        widths = [config.model.base_channels * factor for factor in config.model.channels_mult]
        self.patch, self.strides = config.model.patch, [size * 2 ** (len(widths) - 1) for size in config.model.patch]
        fold = 2 * channels * self.patch[0] * self.patch[1]
        self.unet = UNet2DModel(
            in_channels=fold, out_channels=fold // 2, layers_per_block=config.model.blocks, block_out_channels=widths,
            down_block_types=["DownBlock2D"] * len(widths), up_block_types=["UpBlock2D"] * len(widths),
            add_attention=False, norm_num_groups=8,
        )  # fmt: skip

    def forward(self, x_t: Tensor, mixture: Tensor, t: Tensor) -> Tensor:
        x = torch.cat([x_t, mixture], dim=1)
        missing = [-size % stride for size, stride in zip(x.shape[-2:], self.strides, strict=True)]
        x = nn.functional.pad(x, (0, missing[1], 0, missing[0]))
        (pf, pt), (batch, channels, bins, frames) = self.patch, x.shape
        x = x.reshape(batch, channels, bins // pf, pf, frames // pt, pt).permute(0, 1, 3, 5, 4, 2)
        return self.unet(x.reshape(batch, channels * pf * pt, frames // pt, bins // pf), t).sample


def network_step(model: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype | None) -> Callable[[], None]:
    """Forward, backward and AdamW, without data and spectrograms."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-6)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(inputs[0].device, dtype):
            output = model(*inputs)
        output.float().square().mean().backward()
        optimizer.step()

    return step


def cells(step: Callable[[], object], count: int, audio: float, limit: float, memory_: float | None,
          device: torch.device, budget: float) -> list[str]:  # fmt: skip
    """A row of the table."""
    took = seconds(step, device, budget)
    rate = count / took
    kept = "-" if memory_ is None else f"{memory_:.2f}"
    return [f"{1e3 * took:.0f}", f"{1e3 * took / audio:.1f}", f"{count / 1e9:.0f}", f"{rate / 1e9:.0f}",
            f"{rate / limit:.0%}", kept]  # fmt: skip


def run(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--config", default=None, help="YAML file (default: the built-in defaults)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default: 5)")
    parser.add_argument("--only", choices=FORMATS, help="number format (default: both)")
    parser.add_argument("--layout", choices=LAYOUTS, help="memory layout (default: both)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_args(argv)

    device = resolve_device(args.device)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(f"{os.cpu_count()} cores, {platform.machine()}, on {describe(device)}, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}, load average {load}", end="\n\n")  # fmt: skip
    rows: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="diffvocsep-") as folder:
        paths = [f"log.{key}='{(Path(folder) / key).as_posix()}'" for key in ("tb_log_dir", "checkpoint_dir")]
        overrides = ["data.dataset=synthetic", "data.synthetic_songs=2", "train.val_batches=1", *args.overrides, *paths]
        config = load_config(args.config, overrides)
        audio = config.train.batch_size * config.data.segment_seconds
        for name in [args.only] if args.only else FORMATS:
            limit = best_convolution(device, FORMATS[name], args.seconds / 10)
            rows[f"limit: a 3x3 convolution, {name}"] = ["", "", "", f"{limit / 1e9:.0f}", "100%", ""]
            layouts = [args.layout] if args.layout else LAYOUTS
            for chosen, compiled in product(layouts, (False,) if args.no_compile else (False, True)):
                last, layout = chosen == "channels_last", LAYOUTS[chosen]
                label = f"{name}{', channels_last' if last else ''}{', compile' if compiled else ''}"
                amp = "bf16" if FORMATS[name] else "none"
                options = [f"train.amp={amp}", f"train.channels_last={last}", f"train.compile={compiled}"]
                trainer = Trainer(load_config(None, options, config), device, "none")
                shape = (config.train.batch_size, *trainer.objective.shape())
                x_t, mixture = torch.randn(2, *shape, device=device)
                inputs = x_t, mixture, torch.full((len(x_t),), config.diffusion.timesteps - 1, device=device)
                counts = {}
                for who in ("ours", "diffusers"):  # one after the other, so that our memory is ours alone
                    model = trainer.model if who == "ours" else Diffusers(shape[1], config)
                    model = model.to(device, memory_format=layout)
                    step = network_step(model, inputs, FORMATS[name])
                    counts[who], kept = flops(step), memory(step, device)
                    if compiled:
                        step, kept = network_step(torch.compile(model), inputs, FORMATS[name]), None
                    row = cells(step, counts[who], audio, limit, kept, device, args.seconds)
                    rows[f"{who}, network alone: {label}"] = row
                batches = next(trainer._steps())
                row = cells(lambda t=trainer, b=batches: t._optimize(b), counts["ours"], audio, limit, None, device,
                            args.seconds)  # fmt: skip
                rows[f"ours, training step without data: {label}"] = row
    print(table(f"batch of {config.train.batch_size} x {config.data.segment_seconds:g} s", COLUMNS, rows))
    return 0


if __name__ == "__main__":
    main(run)
