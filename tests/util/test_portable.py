"""What Windows and macOS do differently, simulated where it cannot be run: see docs/training.md."""

from __future__ import annotations

import ast
import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import pytest
import torch
from trainers import ROOT, make, tiny

from diffvocsep.data.loader import _init_worker
from diffvocsep.util import atomic
from diffvocsep.util.atomic import write_atomic

FOLDERS = ("diffvocsep", "benchmarks", "scripts", "docs", "tests")
FILES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])
PROGRAM = [path for path in FILES if "tests" not in path.relative_to(ROOT).parts]
POSIX_ONLY = {
    "os": {"fork", "killpg", "getpgid", "setsid", "getuid", "geteuid", "mkfifo", "uname", "wait", "nice"},
    "signal": {*dir(signal)} - {"signal", "getsignal", "raise_signal", "SIGINT", "SIGTERM", "SIG_IGN", "SIG_DFL"},
}  # fmt: skip


def catches_import_error(attempt: ast.Try) -> bool:
    return any(getattr(handler.type, "id", "") == "ImportError" for handler in attempt.handlers)


def test_the_program_uses_nothing_that_only_posix_has():
    found = []
    for path in PROGRAM:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        may_fail = [node.body for node in ast.walk(tree) if isinstance(node, ast.Try) and catches_import_error(node)]
        for node in ast.walk(tree):
            if any(node in body for body in may_fail):
                continue
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found += [f"{path.name}: {node.attr}"] if node.attr in POSIX_ONLY.get(node.value.id, ()) else []
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "")]
                found += [f"{path.name}: {name}" for name in names if name in ("resource", "fcntl", "pwd", "termios")]
    assert found == []


def test_replacing_a_file_that_someone_has_open_is_tried_again(tmp_path, monkeypatch):
    """On Windows os.replace fails while a virus scanner, an indexer or another program reads the target."""
    path, real, calls = tmp_path / "last.pt", os.replace, []
    path.write_text("old", encoding="utf-8")

    def busy(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) <= 3:
            raise PermissionError(13, "The process cannot access the file because it is being used by another process")
        real(source, target)

    monkeypatch.setattr(atomic.os, "replace", busy)
    monkeypatch.setattr(atomic.time, "sleep", lambda _: None)
    write_atomic(path, lambda part: part.write_text("new", encoding="utf-8"))
    assert len(calls) == 4 and path.read_text(encoding="utf-8") == "new"

    monkeypatch.setattr(atomic.os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "in use")))
    with pytest.raises(PermissionError):
        write_atomic(path, lambda part: part.write_text("newer", encoding="utf-8"))
    assert path.read_text(encoding="utf-8") == "new" and [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("dataset", ["synthetic", "stems"])
def test_what_loader_processes_need_survives_pickling(tmp_path, dataset):
    """Under `spawn` everything is pickled; test_resume.py spawns real loaders for the synthetic songs."""
    import soundfile

    for k, split in enumerate(("train", "dev")):
        folder = tmp_path / split / "곡"
        folder.mkdir(parents=True)
        for side in ("vocals", "accompaniment"):
            noise = torch.randn(16000, generator=torch.Generator().manual_seed(k)).numpy() / 10
            soundfile.write(folder / f"{side}.wav", noise, 8000)
    roots = [f"data.{key}='{(tmp_path / split).as_posix()}'" for key, split in (("root", "train"), ("dev_root", "dev"))]
    trainer = make(tmp_path, f"data.dataset={dataset}", f"data.cache_dir='{(tmp_path / 'cache').as_posix()}'", *roots)
    copy, init = pickle.loads(pickle.dumps((trainer.segments, _init_worker)))
    assert init is _init_worker
    for name, value in trainer.segments[3].items():
        assert torch.equal(value, copy[3][name]), name


def test_a_config_and_a_start_method_exist_everywhere(tmp_path):
    assert "spawn" in multiprocessing.get_all_start_methods()
    assert pickle.loads(pickle.dumps(tiny(tmp_path))) == tiny(tmp_path)
