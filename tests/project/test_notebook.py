"""The Colab notebook: its code cells, run one by one with tiny settings; those of the TPU on PJRT_DEVICE=CPU, where
torch_xla is (see .ci/run)."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
from trainers import ROOT, TINY

NOTEBOOK = ROOT / "notebooks" / "diffvocsep_colab.ipynb"
LOCAL = ("checkpoints", "logs", "data")  # what a run writes, or may


def cells() -> list[tuple[str, str]]:
    """(tag, code) of the code cells."""
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert book["nbformat"] == 4 and not any(cell.get("outputs") for cell in book["cells"])
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    return [(cell["metadata"]["tags"][0], "".join(cell["source"])) for cell in code]


def execute(cell: str, names: dict) -> None:
    """As Jupyter does: `!` starts a command, `{NAME}` in it is a variable, and the rest is Python."""
    lines = cell.splitlines()
    for line in (line for line in lines if line.startswith("!")):
        words = shlex.split(line[1:].format(**names))
        words[0] = sys.executable if words[0] == "python" else words[0]
        done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", timeout=900)
        assert done.returncode == 0, done.stderr
    exec("\n".join(line for line in lines if not line.startswith("!")), names)


@pytest.mark.slow
def colab(monkeypatch, folder: Path) -> list[str]:
    """What Colab and Jupyter bring, in few lines: two seconds of the demo song are uploaded, as `my song.ogg`. Returns
    the files that are shown or downloaded, as they come."""

    def upload() -> dict[str, bytes]:
        samples, rate = soundfile.read(ROOT / "data" / "demo" / "song.ogg", 2 * 44100)
        soundfile.write(folder / "my song.ogg", samples, rate)
        return {"my song.ogg": b""}

    came: list[str] = []
    files = SimpleNamespace(upload=upload, download=came.append)
    show = SimpleNamespace(Audio=str, Image=str, display=came.append)
    modules = {"google": SimpleNamespace(), "google.colab": SimpleNamespace(files=files)}
    for name, module in (modules | {"IPython": SimpleNamespace(), "IPython.display": show}).items():
        monkeypatch.setitem(sys.modules, name, module)
    return came


def test_it_has_two_sections():
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    texts = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "markdown"]
    headings = [line for text in texts for line in re.findall(r"^#+ .*", text, re.M)]
    assert headings == ["# Diff-VocSep on Colab", "## Separate a song", "## Train"]


@pytest.mark.slow
def test_its_cells_run(tmp_path, monkeypatch):
    with_xla = importlib.util.find_spec("torch_xla") is not None
    for path in ROOT.iterdir():
        if path.name not in LOCAL and not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "demo").symlink_to(ROOT / "data" / "demo")
    monkeypatch.chdir(tmp_path)
    small = [*TINY.split(), "train.max_steps=2", "model.channels_mult=[1,1,1]"]
    monkeypatch.setenv("DIFFVOCSEP_SETTINGS", " ".join(small))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
    shown = colab(monkeypatch, tmp_path)
    names: dict = {}
    for tag, cell in cells():
        if tag == "install":
            words = cell.removeprefix("!").split()
            assert words[:2] == ["pip", "install"] and (ROOT / words[-1]).is_file()
        elif tag != "tpu" or with_xla:
            if tag == "tpu":
                names["SETTINGS"] += " train.max_steps=3"  # it goes on with what the GPU's cell has left
            execute(cell, names)
    stems = ["vocals.mp3", "instrumental.mp3"]
    assert names["SONG"] == "my song.ogg" and shown == [*stems, "picture.png", *stems, "mine.mp3"]
    assert {soundfile.info(tmp_path / name).frames for name in (*stems, "mine.mp3")} == {2 * 44100}
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert all((tmp_path / "checkpoints" / name).is_file() for name in ("last.pt", "best.pt"))


def test_without_the_repository_its_first_cell_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tag, cell = cells()[0]
    with pytest.raises(AssertionError, match="^the repository is not here: bring it to /content/Diff-VocSep"):
        execute(cell, {})
    assert tag == "setup"
