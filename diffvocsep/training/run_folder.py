"""The folder of a run: what was run, and with what.

config.yaml    every setting, as used
run.json       one entry for each time the run was started or went on: when, command line, commit, versions, device
history.csv    what TensorBoard's curves show, see history.py; empty where a row has no such value
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from filelock import FileLock, Timeout

from ..checkpoint import versions
from ..config import Config, save_config
from ..util.atomic import numbered_names, write_atomic
from ..util.errors import UserError
from ..util.folders import readable

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torchaudio", "pyyaml", "tqdm", "tensorboard", "soundfile", "safetensors", "matplotlib", "psutil")


class FolderLock:
    """Locks the folder of the checkpoints within a `with` block, for a second training would overwrite those of the
    first. Where the file system knows no locks, nothing is locked.

    Raises:
        UserError: another training holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / ".lock"

    def __enter__(self) -> FolderLock:
        self._acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def renew(self) -> None:
        """Lock the folder once more if somebody has deleted it: a lock on a file that is gone keeps nobody out."""
        if self._identity() != self.locked:
            self.lock.release()
            self._acquire()

    def _acquire(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.path)
        try:
            with suppress(NotImplementedError):
                self.lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another training writes into '{self.folder}': wait for it, or set another log.checkpoint_dir"
            ) from None
        self.locked = self._identity()

    def _identity(self) -> tuple[int, int] | None:
        """Which file the lock is; None if there is none."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


def make_run_folder(wanted: Path) -> Path:
    """Make the folder of a run that begins: `wanted`, or `wanted-2`, ... if another run began in the same second."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for name in numbered_names(wanted.name):
        folder = wanted.with_name(name)
        with suppress(FileExistsError):
            folder.mkdir()
            return folder


def record_start(folder: Path, config: Config, step: int, device: str, changes: Sequence[str]) -> str:
    """Write `config.yaml` and one more entry of `run.json`, which is also returned, as text.

    Args:
        step: where this start begins.
        changes: what differs from the config that the run had before.
    """
    path, starts = folder / "run.json", read_starts(folder)
    start = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "step": step,
        "command": readable(shlex.join([sys.executable, *sys.argv])),  # as typed, in spawned processes too
        "commit": git_commit(),
        "device": device,
        "checkpoints": readable(str(Path(config.log.checkpoint_dir).resolve())),
        "versions": versions() | {name: installed for name in PACKAGES if (installed := _installed(name))},
        "changes": list(changes),
    }
    save_config(config, folder / "config.yaml")
    text = json.dumps([*starts, start], indent=2, ensure_ascii=False)
    write_atomic(path, lambda part: part.write_text(text + "\n", encoding="utf-8"))
    return json.dumps(start, indent=2, ensure_ascii=False)


def read_starts(folder: Path) -> list:
    """The entries of `run.json`; none where there is no such file, or a damaged one."""
    try:
        starts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return starts if isinstance(starts, list) else []


def checkpoint_folder_of(folder: Path) -> Path | None:
    """The folder that the run with this run folder last wrote its checkpoints to; None if its run.json does not say."""
    start = next(reversed(read_starts(folder)), None)
    home = start.get("checkpoints") if isinstance(start, dict) else None
    return Path(home) if isinstance(home, str) and "\0" not in home else None


def git_commit() -> str | None:
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
