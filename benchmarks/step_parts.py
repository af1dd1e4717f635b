"""What the time of a training step of the default model is spent on:

    python -m benchmarks.step_parts

Times are those of `torch.profiler`: on a CPU what each operator takes itself, without those that it calls; on a GPU
what its kernels take. What changes the layout inside an operator counts with that operator. Prints Markdown.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from diffvocsep.evaluation.report import table
from diffvocsep.training.backends import Backend
from diffvocsep.training.trainer import Trainer
from diffvocsep.util.cli import main
from diffvocsep.util.device import resolve_device

from .train_step import about, in_turn, make_parser, settings, synchronize

COLUMNS = ("ms", "share", "mostly")
UPDATE, STFT = "optimizer, clipping, EMA", "STFT"
POINTWISE, REST = "activations, losses, other pointwise", "Python and autograd"
KINDS = {  # of an operator, by its name; the first that fits
    "convolutions": r"conv",
    "matrix products": r"mm$|mm_|matmul|linear$|linear_backward|dot_product|attention",
    "normalization": r"group_norm",
    STFT: r"fft|stft",
    UPDATE: r"_foreach_|_fused_adam|vector_norm",
    "copies and layout": r"copy|clone|contiguous|cat$|stack|pad|fill_|zero|empty|view|reshape|permute|transpose|select|"
                         r"slice|strided|narrow|chunk|split|unbind|flatten|expand|squeeze|resize|alias|movedim|detach|"
                         r"::t$|::to$",
}  # fmt: skip
WHOLE = {UPDATE: rf"^Optimizer\.|^{UPDATE}", STFT: r"stft"}  # with all that these call


def kind(name: str, callers: Iterable[str] = ()) -> str:
    """Which part of the step an operator belongs to; `callers` are those that it is called by, the
    nearest first."""
    chain = [name, *callers]
    for part, pattern in WHOLE.items():
        if any(re.search(pattern, caller) for caller in chain):
            return part
    for part, pattern in KINDS.items():
        if re.search(pattern, name):
            return part
    return POINTWISE if name.startswith("aten::") else REST


def ancestors(event: torch.autograd.profiler_util.FunctionEvent) -> Iterator[str]:
    while (event := event.cpu_parent) is not None:
        yield event.name


def parts(step: Callable[[], object], device: torch.device, count: int) -> tuple[dict[str, Counter], float]:
    """Milliseconds by part, and within it by operator, of one of `count` steps, and its ms by the clock."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        began = time.perf_counter()
        for _ in range(count):
            with record_function("step"):
                step()
        synchronize(device)
        clock = 1e3 * (time.perf_counter() - began) / count
    found: dict[str, Counter] = {part: Counter() for part in (*KINDS, POINTWISE, REST)}
    for event in profiler.events():
        if event.device_type == DeviceType.CPU:  # kernels have events of their own, beside those that launched them
            took = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
            found[kind(event.name, ancestors(event))][event.name] += took / 1e3 / count
    return found, clock


def marked(function: Callable, name: str) -> Callable:
    """`function`, seen by the profiler under `name`."""

    def inside(*args: object) -> object:
        with record_function(name):
            return function(*args)

    return inside


def rows(found: dict[str, Counter]) -> dict[str, list[str]]:
    """The parts, in ms, the longest first, each with the three operators that take most of it; and their sum."""
    total = sum(sum(operators.values()) for operators in found.values())
    lines = {}
    for part, operators in sorted(found.items(), key=lambda item: -sum(item[1].values())):
        took = sum(operators.values())
        most = ", ".join(f"`{name}` {ms / total:.0%}" for name, ms in operators.most_common(3) if ms > 0.005 * total)
        lines[part] = [f"{took:.1f}", f"{took / total:.1%}", most]
    return {**lines, "all": [f"{total:.1f}", "100.0%", ""]}


def run(argv: list[str] | None = None) -> int:
    args = make_parser("step_parts", __doc__, 5).parse_args(argv)
    device = resolve_device(args.device)
    print(about(device), end="\n\n")
    with tempfile.TemporaryDirectory(prefix="diffvocsep-") as folder:
        config = settings(args.config, args.overrides, folder)
        trainer = Trainer(config, Backend(device), "none")
        trainer.average = marked(trainer.average, UPDATE)
        synthesis = trainer.objective.synthesis
        synthesis.overlap_add = marked(synthesis.overlap_add, "inverse stft")
        batches = next(trainer.steps())

        def step() -> object:
            return trainer.optimize(batches)

        bare = in_turn({"step": step}, device, args.rounds)["step"]
        parts(step, device, 1)  # the profiler, too, is slow at first
        found, clock = parts(step, device, args.rounds)
    title = f"a step of {config.train.batch_size} x {config.data.segment_seconds:g} s, {args.rounds} steps"
    lines = rows(found)
    print(table(title, COLUMNS, lines))
    print(f"\nBy the clock a step took {clock:.1f} ms, of which {float(lines['all'][0]) / clock:.1%} are in the table; "
          f"without the profiler {1e3 * np.median(bare):.1f} ms.")  # fmt: skip
    return 0


if __name__ == "__main__":
    main(run)
