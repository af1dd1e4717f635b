"""The folder of a run: what was run, with what, and its curves as a table that needs no TensorBoard.

config.yaml    every setting, as used
run.json       one entry for each time the run was started or went on: when, command line, commit, versions, device
history.csv    what TensorBoard's curves show; empty where a row has no such value
"""

from __future__ import annotations

import csv
import io
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, count
from pathlib import Path

from filelock import FileLock, Timeout

from ..checkpoint import versions
from ..config import Config, save_config
from ..util.atomic import write_atomic
from ..util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torchaudio", "pyyaml", "tqdm", "tensorboard", "soundfile", "safetensors", "matplotlib", "psutil")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder of the checkpoints, for a second training would overwrite those of the first. Where the file
    system knows no locks, nobody is kept out.

    Raises:
        UserError: another training holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        with suppress(NotImplementedError):
            lock.acquire(timeout=0)
        yield
    except Timeout:
        raise UserError(
            f"another training writes into '{folder}': wait for it, or set another log.checkpoint_dir"
        ) from None
    finally:
        lock.release()


def numbered(name: str) -> Iterator[str]:
    """`name`, `name-2`, `name-3`, ...: until one is free."""
    return chain([name], (f"{name}-{number}" for number in count(2)))


def new_folder(wanted: Path) -> Path:
    """Make the folder of a run that begins: `wanted`, or, if another run began in the same second, `wanted-2`, ..."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for name in numbered(wanted.name):
        folder = wanted.with_name(name)
        with suppress(FileExistsError):
            folder.mkdir()
            return folder


def describe_run(folder: Path, config: Config, step: int, device: str, changes: Sequence[str]) -> str:
    """Write `config.yaml` and one more entry of `run.json`, which is also returned, as text.

    Args:
        step: where this start begins.
        changes: what differs from the config that the run had before.
    """
    path = folder / "run.json"
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet
        starts = []
    start = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "step": step,
        "command": shlex.join([sys.executable, *sys.argv]),  # as typed, in spawned processes too
        "commit": commit(),
        "device": device,
        "versions": versions() | {name: installed for name in PACKAGES if (installed := _installed(name))},
        "changes": list(changes),
    }
    save_config(config, folder / "config.yaml")
    text = json.dumps([*starts, start], indent=2, ensure_ascii=False)
    write_atomic(path, lambda part: part.write_text(text + "\n", encoding="utf-8"))
    return json.dumps(start, indent=2, ensure_ascii=False)


def commit() -> str | None:
    """The git commit of this program, with `-dirty` where files differ from it; None without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        if not (ROOT / ".git").exists():  # installed into some other project's repository
            return None
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class History:
    """`history.csv`: a row now and then, each on disk at once. A run that goes on from `step` drops later rows, and at
    `step` those with values in the columns `redone`: it will write them anew."""

    def __init__(self, path: Path, columns: Sequence[str], step: int, redone: Sequence[str] = ()) -> None:
        self.path, self.columns = path, ("step", "time", *columns)
        self.pending: list[dict[str, object]] = []  # rows that are not on disk yet
        rows = [row for row in self._read() if int(row["step"]) <= step]
        rows = [row for row in rows if int(row["step"]) < step or not any(row.get(name) for name in redone)]
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(path, lambda part: part.write_text(text.getvalue(), encoding="utf-8", newline="\n"))

    def _read(self) -> list[dict[str, str]]:
        """The whole rows; the last may have been cut short."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        return [row for row in csv.DictReader(whole) if (row.get("step") or "").isdecimal()]

    def values_at(self, step: int) -> list[tuple[str, float]]:
        """What is there of a step, by column."""
        rows = [row for row in self._read() if int(row["step"]) == step]
        return [(name, float(row[name])) for row in rows for name in self.columns[2:] if row[name]]

    def add(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
        row |= {name: f"{value:.6g}" for name, value in values.items()}
        self.pending.append(row)
        self.write()

    def write(self) -> None:
        """Append what is pending, or leave it for the next time: on Windows, Excel lets no one else write to a file."""
        try:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerows(self.pending)
        except PermissionError:
            return
        self.pending = []
