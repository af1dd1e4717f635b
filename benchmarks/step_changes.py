"""What one change of the network, or of how it is computed, does to the time of a step:

    python -m benchmarks.step_changes

Forward, backward and optimizer of the default network as it is, and with one thing changed at a time, in turns like
`train_step.py`. What a change does to the quality of the separation is not measured here. Prints Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from diffvocsep.config import Config, load_config
from diffvocsep.evaluation.report import spread, table
from diffvocsep.training.backends import Backend
from diffvocsep.training.objective import Objective
from diffvocsep.unet import FrameNorm, UNet
from diffvocsep.util.cli import main
from diffvocsep.util.device import amp_dtype, channels_last, fast_bf16, resolve_device
from diffvocsep.util.errors import UserError

from .train_step import Work, about, flops, in_turn, make_parser, network_inputs, network_step

COLUMNS = ("ms per s of audio", "times the first", "GFLOP a step")


class Change(NamedTuple):
    overrides: Sequence[str] = ()
    disturb: Callable[[nn.Module], None] = lambda model: None


def with_item_norm(model: nn.Module) -> None:
    """GroupNorm over all frames of an item. For comparison only: a frame would depend on the whole chunk, and a song's
    chunks would be heard at their joints."""
    for module in model.modules():
        if isinstance(module, FrameNorm):
            module.forward = partial(nn.GroupNorm.forward, module)


def without_norm(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, FrameNorm):
            module.forward = lambda x: x


def changes(config: Config, device: torch.device) -> dict[str, Change]:
    """The network as it is, and one change at a time; of layout and number format, the one that is not in use."""
    dtype = amp_dtype(config.train.amp, device)
    last = channels_last(config.train.channels_last, device, dtype)
    found = {
        "as it is": Change(),
        "patch of 2 x 2": Change(["model.patch=[2,2]"]),
        "GroupNorm over the whole item": Change(disturb=with_item_norm),
        "no normalization": Change(disturb=without_norm),
        "no linear layers along frequency": Change(["model.frequency_linear=0"]),
        "width of 48": Change(["model.base_channels=48"]),
        "contiguous" if last else "channels_last": Change([f"train.channels_last={not last}"]),
        "compile": Change(["train.compile=true"]),
    }
    if fast_bf16(device):  # with the layout as it is: one change
        other = "none" if dtype else "bf16"
        found["float32" if dtype else "bf16"] = Change([f"train.amp={other}", f"train.channels_last={last}"])
    return found


def changed(config: Config, change: Change, backend: Backend) -> Work:
    """A step of the network of `config` with a change."""
    config = load_config(None, list(change.overrides), config)
    device, dtype = backend.device, amp_dtype(config.train.amp, backend.device)
    torch.manual_seed(0)
    model = UNet(config).to(device)
    if channels_last(config.train.channels_last, device, dtype):
        model = model.to(memory_format=torch.channels_last)
    change.disturb(model)
    inputs = network_inputs(config, Objective(config).shape(), device)
    count = flops(network_step(model, inputs, dtype, backend))
    if config.train.compile:
        torch.compiler.reset()  # it compiles the same function only so often
        model = torch.compile(model)
    return Work(network_step(model, inputs, dtype, backend), count)


def run(argv: list[str] | None = None) -> int:
    parser = make_parser("step_changes", __doc__, 11)
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.overrides)
    if config.train.compile:
        raise UserError("train.compile = true is itself one of the changes measured here; leave it false")
    backend = Backend(resolve_device(args.device))
    print(about(backend.device), end="\n\n")
    chosen = changes(config, backend.device)
    if args.no_compile:
        chosen.pop("compile", None)
    works = {name: changed(config, change, backend) for name, change in chosen.items()}
    times = in_turn({name: work.step for name, work in works.items()}, backend.device, args.rounds)
    first, audio = next(iter(times.values())), config.train.batch_size * config.data.segment_seconds
    rows = {name: [spread(1e3 * took / audio), spread(took / first), f"{works[name].flop / 1e9:.1f}"]
            for name, took in times.items()}  # fmt: skip
    title = f"batch of {config.train.batch_size} x {config.data.segment_seconds:g} s, {args.rounds} rounds"
    print(table(title, COLUMNS, rows))
    return 0


if __name__ == "__main__":
    main(run)
