"""How fast versions of this program are beside each other, on a machine whose speed comes and goes.

    git worktree add OLD 694ae4b
    python -m benchmarks.compare_versions OLD . .+keep --rounds 9

Each version is a checkout in a process of its own, with two threads; with `+keep` it keeps freed memory, as the
scripts do (`diffvocsep/util/memory.py`). They take turns, so that all meet the same neighbours on the machine: in each
round every one separates the same 30 s of stereo noise with the model of its checkout. Medians and minima over the
rounds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from statistics import median

from tqdm.auto import tqdm

from diffvocsep.evaluation.report import table
from diffvocsep.util.cli import Parser, finite, main
from diffvocsep.util.errors import UserError

SHIPPED = Path("checkpoints") / "pretrained.safetensors"
KEEP = "+keep"
CHILD = """
import sys, time, torch
from diffvocsep import Separator
if "keep" in sys.argv:
    from diffvocsep.util.memory import keep_freed_memory
    keep_freed_memory()
torch.set_num_threads(2)
torch.manual_seed(0)
mixture = 0.1 * torch.randn(2, int(float(sys.argv[2]) * 44100))
separator = Separator.from_checkpoint(sys.argv[1], "cpu")
separator.separate(mixture, 44100)
print("ready", flush=True)
for _ in sys.stdin:
    began = time.perf_counter()
    separator.separate(mixture, 44100)
    print(time.perf_counter() - began, flush=True)
"""


def begin(version: str, seconds: float) -> subprocess.Popen:
    """A process of this version that separates once for every line it is sent; it has warmed up."""
    folder = Path(version.removesuffix(KEEP)).resolve()
    if not (folder / SHIPPED).is_file():
        raise UserError(f"'{folder}' is no checkout of Diff-VocSep: it has no {SHIPPED.as_posix()}")
    keep = ["keep"] if version.endswith(KEEP) else []
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder / SHIPPED), str(seconds), *keep],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(folder)},
    )  # fmt: skip
    if not process.stdout.readline():
        raise UserError(f"the version in '{folder}' ended before it had separated anything; its last words are above")
    return process


def once(version: str, process: subprocess.Popen) -> float:
    """One separation, in s.

    Raises:
        UserError: the process has ended.
    """
    with suppress(BrokenPipeError):  # then there is no answer either
        process.stdin.write("\n")
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise UserError(f"'{version}' ended in the middle; its last words are above")
    return float(answer)


def run(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("versions", nargs="+", metavar="CHECKOUT[+keep]")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=finite, default=30.0, help="of song")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.seconds <= 0:
        raise UserError("--rounds is at least 1, and --seconds is above 0")
    processes = {}
    try:
        for version in args.versions:
            processes[version] = begin(version, args.seconds)
        rounds = [[once(*pair) for pair in processes.items()] for _ in tqdm(range(args.rounds), leave=False)]
    finally:
        for process in processes.values():
            process.kill()
    times = dict(zip(processes, zip(*rounds, strict=True), strict=True))
    cells = {version: [f"{median(found):.2f}", f"{min(found):.2f}"] for version, found in times.items()}
    print(table(f"s for {args.seconds:g} s of stereo, {args.rounds} rounds", ("median", "least"), cells))
    return 0


if __name__ == "__main__":
    main(run)
