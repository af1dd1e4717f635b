"""What Windows and macOS do differently, simulated where it cannot be run: see docs/training.md."""

from __future__ import annotations

import ast
import multiprocessing
import os
import pickle
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from trainers import ROOT, make, tiny

from diffvocsep.data.loader import _begin
from diffvocsep.util import atomic
from diffvocsep.util.atomic import write_atomic

FOLDERS = ("diffvocsep", "benchmarks", "scripts", "docs", "tests")
FILES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])
PROGRAM = [path for path in FILES if "tests" not in path.relative_to(ROOT).parts]
POSIX_ONLY = {
    "os": {"fork", "killpg", "getpgid", "setsid", "getuid", "geteuid", "mkfifo", "uname", "wait", "nice"},
    "signal": {*dir(signal)} - {"signal", "getsignal", "raise_signal", "SIGINT", "SIGTERM", "SIG_IGN", "SIG_DFL"},
}  # fmt: skip


def calls(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def is_binary(call: ast.Call) -> bool:
    arguments = [*call.args, *(k.value for k in call.keywords)]
    modes = [part.value for a in arguments for part in ast.walk(a) if isinstance(part, ast.Constant)]
    return any(isinstance(mode, str) and "b" in mode and len(mode) <= 3 for mode in modes)


def without_encoding(path: Path) -> list[str]:
    """Places where text is read or written in whatever encoding the system has (cp949 on a Korean Windows)."""
    found = []
    for call in calls(path):
        name, keywords = name_of(call), {k.arg for k in call.keywords}
        module = call.func.value.id if isinstance(call.func, ast.Attribute) and hasattr(call.func.value, "id") else ""
        opens = name == "open" and module not in (
            "os",
            "zipfile",
            "tarfile",
            "wave",
            "webbrowser",
            "Image",
            "file",
        )  # file: an open archive
        text = name in ("read_text", "write_text") or (opens and not is_binary(call))
        text = text or ("text" in keywords and module == "subprocess" and "tests" not in path.relative_to(ROOT).parts)
        if text and "encoding" not in keywords and None not in keywords:
            found.append(f"{path.relative_to(ROOT)}:{call.lineno} {name}")
    return found


def test_every_text_file_is_opened_in_a_named_encoding():
    tracked = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False
    ).stdout.split()
    assert len(FILES) > 100 and {ROOT / name for name in tracked} <= set(FILES)
    assert [place for path in FILES for place in without_encoding(path)] == []


def test_the_search_for_encodings_finds_what_it_should(tmp_path, monkeypatch):
    monkeypatch.setattr("test_portable.ROOT", tmp_path)
    bad = ["open(p)", "open(p, 'w')", "p.open()", "p.read_text()", "p.write_text('b')", "subprocess.run(c, text=True)"]
    good = ["open(p, 'rb')", "p.open('wb')", "open(p, encoding='utf-8')", "p.read_bytes()", "os.open(p, 0)"]
    (tmp_path / "a.py").write_text("\n".join(bad + good), encoding="utf-8")
    assert [place.split()[0] for place in without_encoding(tmp_path / "a.py")] == [f"a.py:{n}" for n in range(1, 7)]


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
    copy, init = pickle.loads(pickle.dumps((trainer.segments, _begin)))
    assert init is _begin
    for name, value in trainer.segments[3].items():
        assert torch.equal(value, copy[3][name]), name


def test_a_config_and_a_start_method_exist_everywhere(tmp_path):
    assert "spawn" in multiprocessing.get_all_start_methods()
    assert pickle.loads(pickle.dumps(tiny(tmp_path))) == tiny(tmp_path)
