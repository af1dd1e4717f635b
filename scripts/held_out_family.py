"""Does a family of instruments have to be in the training data? Trains twice, with all families and with one held out.

    python -m scripts.held_out_family --family bowed --minutes 30 --output DIR

Both trainings have the same songs' seeds, steps and settings (config.yaml, or --config and section.key=value); their
length is chosen, once, so that everything fits into the minutes. Then both are scored on every family, each on its own,
under the same voices. An interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffvocsep.data.synthetic.song import FAMILIES
from diffvocsep.evaluation.families import gap, instruments, synthetic_parts
from diffvocsep.evaluation.parallel import processes
from diffvocsep.evaluation.report import interval, table, write_csv
from diffvocsep.evaluation.systems import Model
from diffvocsep.util.atomic import write_atomic
from diffvocsep.util.cli import Parser, main
from diffvocsep.util.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PROBE = (10, 40)  # steps of two short runs, whose difference tells the time of a step
SHARE = 0.8  # of the minutes for training; the rest is for songs, validation and scoring


def train(folder: Path, steps: int, overrides: Sequence[str], config: Path, device: str, resume: str = "auto") -> float:
    """Train into `folder`; seconds it took. By `auto`, what is there already with as many steps is kept."""
    began = time.monotonic()
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(config), "--device", device, "--resume", resume,
               *overrides, f"train.max_steps={steps}", f"train.val_every_steps={max(steps, 1)}",
               f"log.checkpoint_dir={folder.as_posix()}", f"log.tb_log_dir={(folder / 'tb').as_posix()}"]  # fmt: skip
    done = subprocess.run(command)
    if done.returncode:
        raise UserError(f"the training in '{folder}' ended with exit code {done.returncode}; its last lines say why")
    return time.monotonic() - began


def choose_steps(args: argparse.Namespace) -> int:
    """As many steps as fit into the minutes, twice. `steps.json` keeps them, with what they were chosen for.

    Raises:
        UserError: the minutes are too few, or `steps.json` was made with other settings.
    """
    kept, asked = args.output / "steps.json", [args.minutes, str(args.config), args.device, *args.overrides]
    if not kept.exists():
        began = time.monotonic()
        short, long = (
            train(args.output / f"probe {n}", n, args.overrides, args.config, args.device, "none") for n in PROBE
        )
        per_step = max(1e-3, (long - short) / (PROBE[1] - PROBE[0]))
        around = max(0.0, short - PROBE[0] * per_step)  # to begin, to validate and to end, whatever the steps
        taken = time.monotonic() - began + 2 * around
        steps = int((60 * args.minutes * SHARE - taken) / 2 / per_step)
        if steps < PROBE[0]:
            least = math.ceil((taken + 2 * PROBE[0] * per_step) / SHARE / 60)
            raise UserError(f"--minutes {args.minutes:g} leaves no time to train here; give at least {least}")
        text = json.dumps({"asked": asked, "steps": steps})
        write_atomic(kept, lambda part: part.write_text(text, encoding="utf-8"))
        print(f"{per_step:.2f} s a step", file=sys.stderr)
    found = json.loads(kept.read_text(encoding="utf-8"))
    if found["asked"] != asked:
        raise UserError(f"'{kept}' was made with other settings; name another folder with --output")
    return found["steps"]


def run(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, default="bowed", help="held out")
    parser.add_argument("--minutes", type=float, default=30.0, help="for everything")
    parser.add_argument("--steps", type=int, help="optimizer steps of each training, instead of --minutes")
    parser.add_argument("--songs", type=int, default=30, help="songs of each family in the test")
    parser.add_argument("--config", type=Path, default=ROOT / "config.yaml")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="auto")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_args(argv)

    began = time.monotonic()
    steps = args.steps or choose_steps(args)
    folders = {"all families": args.output / "all", f"without {args.family}": args.output / f"without {args.family}"}
    for name, folder in folders.items():
        held_out = [f"data.held_out_families=[{args.family}]"] if name != "all families" else []
        train(folder, steps, [*args.overrides, *held_out], args.config, args.device)

    parts, scores = synthetic_parts(args.songs), {}
    for name, folder in folders.items():
        model = Model(folder / "last.pt", args.device)
        scores[name] = instruments(parts, model, processes(0, len(parts), args.device))[model.name]
    seen, unseen = scores.values()
    rows = {}
    for family in FAMILIES:
        low, high = interval((seen[family] - unseen[family])[None], lambda drawn: float(np.median(drawn)))
        cost = f"{np.median(seen[family] - unseen[family]):.2f} ({low:.2f} .. {high:.2f})"
        name = family + (" (held out)" if family == args.family else "")
        rows[name] = [f"{np.median(seen[family]):.2f}", f"{np.median(unseen[family]):.2f}", cost]
    columns = [*scores, "difference of a song, median (95 %)"]
    print(table(f"global SDR of the vocals, dB, {args.songs} songs", columns, rows))
    for name, values in scores.items():
        found = gap(values, [args.family])
        print(f"{name}: other families minus {args.family}: {found.value:.2f} dB ({found.low:.2f} .. {found.high:.2f})")
    print(f"{steps} steps each, {(time.monotonic() - began) / 60:.0f} minutes in all")
    lines = [[family, i, seen[family][i], unseen[family][i]] for family in FAMILIES for i in range(len(seen[family]))]
    write_csv(args.output / "held_out.csv", [["family", "song", *scores], *lines])
    return 0


if __name__ == "__main__":
    main(run)
