"""How torch's threads should wait for each other: asleep (passive), spinning (active), spinning a while as libgomp does
when nobody asks, or not at all, with one thread; on a quiet machine, and beside other work.

    python -m benchmarks.waiting --rounds 5

Each policy separates the demo song and trains a few steps, as the commands do, start and all. They take turns, first
alone, then beside `--busy` processes that compute without end. Medians in s, and how many times those of `passive`,
which the commands choose (`diffvocsep/util/cli.py`). Begin it on a machine that does nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tqdm.auto import tqdm

from diffvocsep.evaluation.report import table
from diffvocsep.util.cli import Parser, main
from diffvocsep.util.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
POLICIES = {  # the first is what the others are compared with
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "active": {"OMP_WAIT_POLICY": "ACTIVE"},
    "unset": {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "300000"},  # libgomp's own count where nothing is set
    "one thread": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
}
OTHERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "MKL_NUM_THREADS")  # of whoever starts this: left out
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # none outlives this program


def commands(folder: Path, steps: int) -> dict[str, list[str]]:
    """What is measured; `folder` takes the results."""
    train = ["data.synthetic_songs=8", "train.val_batches=1", f"train.max_steps={steps}", "train.val_every_steps=10000",
             f"log.checkpoint_dir='{folder.as_posix()}'", f"log.tb_log_dir='{(folder / 'tb').as_posix()}'"]  # fmt: skip
    song = ["--input", str(ROOT / "data" / "demo" / "song.ogg"), "--output", str(folder / "vocals.wav")]
    return {
        "the demo song": ["inference.py", *song, "--no-progress"],
        f"{steps} steps": ["train.py", "--config", str(ROOT / "config.yaml"), "--resume", "none", *train],
    }


def seconds(command: Sequence[str], policy: dict[str, str]) -> float:
    """Of one run of a script, from the start of the process to its end.

    Raises:
        UserError: it failed.
    """
    environment = {name: value for name, value in os.environ.items() if name not in OTHERS} | policy
    script, *arguments = command
    began = time.perf_counter()
    done = subprocess.run([sys.executable, str(ROOT / script), *arguments, "--device", "cpu"], env=environment,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8")  # fmt: skip
    if done.returncode:
        raise UserError(f"{script} ended with exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return time.perf_counter() - began


@contextmanager
def load(processes: int) -> Iterator[list[subprocess.Popen]]:
    """So many processes that compute without end, within `with`."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield busy
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure(busy: int, rounds: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each round: work beside how many others, then policy."""
    times: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="diffvocsep-") as folder, tqdm(leave=False, unit="run") as bar:
        for others in (0, busy):
            with load(others):
                for _ in range(rounds):
                    for work, command in commands(Path(folder), steps).items():
                        row = times.setdefault(f"{work}, {f'{others} busy' if others else 'quiet'}", {})
                        for name, policy in POLICIES.items():
                            row.setdefault(name, []).append(seconds(command, policy))
                            bar.update()
    return times


def run(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.waiting", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of training (default: 20)")
    cores = os.cpu_count() or 1
    parser.add_argument("--busy", type=int, default=2 * cores, help="processes beside it (default: two for each core)")
    args = parser.parse_args(argv)
    if min(args.rounds, args.steps, args.busy) < 1:
        raise UserError("--rounds, --steps and --busy are at least 1")
    rows = {}
    for name, times in measure(args.busy, args.rounds, args.steps).items():
        middle = {policy: median(values) for policy, values in times.items()}
        reference = next(iter(middle.values()))
        rows[name] = [f"{value:.1f} ({value / reference:.2f})" for value in middle.values()]
    print(table(f"s (times passive), {cores} cores, {args.rounds} rounds", list(POLICIES), rows))
    return 0


if __name__ == "__main__":
    main(run)
