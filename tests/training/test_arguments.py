"""Before a training: may a dataset be fetched, and is a GPU there that the settings are for?"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from trainers import ROOT

import train
from diffvocsep.config import Config, load_config
from diffvocsep.data.download import ARCHIVE, UNPACKED, WORK, needs_download
from diffvocsep.training import trainer
from diffvocsep.training.arguments import ask_before_download, note_without_gpu
from diffvocsep.util import cli
from diffvocsep.util.errors import UserError

RECIPE = ROOT / "configs" / "musdb18hq.yaml"


def config(root: Path, *overrides: str) -> Config:
    return load_config(RECIPE, [f"data.musdbhq_root='{root.as_posix()}'", *overrides])


def answer(monkeypatch, words: str, settings: Config) -> str:
    """Ask in a terminal where somebody has typed `words`; what stood there."""
    pty = pytest.importorskip("pty", reason="no terminals like that on Windows")
    here, there = pty.openpty()
    os.write(here, words.encode())
    with (
        open(there, encoding="utf-8", closefd=False) as typed,
        open(there, "w", encoding="utf-8") as shown,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stdin", typed)
        patch.setattr(sys, "stderr", shown)
        ask_before_download(settings, agreed=False)
    text = b""
    with suppress(OSError):  # the end, on Linux
        while part := os.read(here, 10_000):
            text += part
    os.close(here)
    return text.decode()


@pytest.mark.parametrize("words", ["y\n", "Yes\n"])
def test_whoever_says_yes_is_told_how_much_comes_from_where(tmp_path, monkeypatch, words):
    shown = answer(monkeypatch, words, config(tmp_path))
    assert all(part in shown for part in (str(tmp_path), "Google Drive", "23 GB", "55 GB", "non-commercial", "[y/N]"))


@pytest.mark.parametrize("words", ["\n", "n\n", "what?\n", "\x04"])
def test_anything_else_is_a_no(tmp_path, monkeypatch, words):
    with pytest.raises(UserError, match="nothing was fetched; set data.musdbhq_root"):
        answer(monkeypatch, words, config(tmp_path))


def test_without_a_terminal_the_option_is_named_and_nothing_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer.Trainer, "__init__", lambda *_: pytest.fail("it has begun"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        cli.main(lambda: train.run(["--config", str(RECIPE), "--device", "cpu"]))
    note, error = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2 and "are for a GPU" in note
    assert error == (
        "error: MUSDB18-HQ is not in 'data/musdb18hq'; add --yes to fetch it (23 GB), or set data.musdbhq_root to its "
        "folder"
    )
    assert not list(tmp_path.iterdir())


def test_what_is_there_or_agreed_is_not_asked_for(tmp_path):
    ask_before_download(config(tmp_path), agreed=True)
    ask_before_download(config(tmp_path, "data.download=false"), agreed=False)  # the source itself says what is missing
    ask_before_download(load_config(None, ["data.cache=device"]), agreed=False)
    assert needs_download(config(tmp_path).data) and needs_download(config(tmp_path / "none").data)
    (tmp_path / WORK).mkdir()
    (tmp_path / WORK / ARCHIVE).touch()  # only to be unpacked
    assert not needs_download(config(tmp_path).data)
    (tmp_path / WORK / ARCHIVE).unlink()
    (tmp_path / WORK / UNPACKED).mkdir()  # only to be moved
    assert not needs_download(config(tmp_path).data)
    (tmp_path / WORK / UNPACKED).rmdir()
    (tmp_path / "train").mkdir()
    assert not needs_download(config(tmp_path).data)


def test_settings_for_a_gpu_are_named_where_there_is_none(tmp_path):
    (line,) = note_without_gpu(config(tmp_path), "cpu")
    assert "data.cache is device" in line and "\n" not in line
    assert note_without_gpu(config(tmp_path), "cuda") == note_without_gpu(load_config(None, []), "cpu") == []
