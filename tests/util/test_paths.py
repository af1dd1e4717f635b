"""Paths that no file can have: said in a sentence, with exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from diffvocsep.checkpoint import load_checkpoint
from diffvocsep.config import load_config
from diffvocsep.util.atomic import require_folder, write_atomic
from diffvocsep.util.cli import main
from diffvocsep.util.errors import UserError, size


def test_a_folder_in_the_place_of_a_file_is_said_and_stays(tmp_path):
    (tmp_path / "best.pt").mkdir()
    with pytest.raises(UserError, match=r"best\.pt' is a folder, where a file belongs"):
        write_atomic(tmp_path / "best.pt", lambda part: part.write_text("new", encoding="utf-8"))
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


@pytest.mark.parametrize("below", ["", "x"])
def test_a_file_in_the_place_of_a_folder_is_said(tmp_path, below):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match=r"nothing can be written into the folder '.*' \('.*out' is a file\)"):
        require_folder(tmp_path / "out" / below)


def test_a_folder_in_the_place_of_a_checkpoint_is_said(tmp_path):
    (tmp_path / "last.pt").mkdir()
    with pytest.raises(UserError, match=r"last\.pt' is a folder, where a checkpoint belongs; move it away"):
        load_checkpoint(tmp_path / "last.pt")


@pytest.mark.skipif(sys.platform == "win32", reason="names are text there")
@pytest.mark.parametrize(
    ("encoding", "name", "said"),
    [("utf-8", b"/tmp/ck\xff", r"'/tmp/ck\xff' is no name in UTF-8: rename it"),
     ("ascii", "/tmp/노래".encode(), "'/tmp/노래' is no name in ASCII: set the environment variable PYTHONUTF8=1, or")],
)  # fmt: skip
def test_a_setting_that_is_no_text_is_refused_with_a_remedy(monkeypatch, encoding, name, said):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: encoding)
    with pytest.raises(UserError) as error:
        load_config(None, [f"log.checkpoint_dir={name.decode('ascii', 'surrogateescape')}"])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 bytes"), (64_000, "64.0 kB"), (5 * 10**6, "5.0 MB"), (7e10, "70.0 GB")]
)
def test_sizes_are_told_in_a_unit_that_shows_them(count, said):
    assert size(count) == said


@pytest.mark.skipif(sys.platform == "win32", reason="other names are too long there")
@pytest.mark.parametrize("look", [Path.stat, Path.mkdir, Path.read_text])
def test_a_name_too_long_for_any_system_is_bad_input(look, capsys):
    """Wherever it comes to light: in a folder of the config, a path of the command line, a checkpoint of a stranger."""
    with pytest.raises(SystemExit) as done:
        main(lambda: look(Path("x" * 300)))
    assert done.value.code == 2 and "is too long a name; give a shorter one" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="other names are too long there")
def test_a_name_too_long_to_be_written_is_the_one_that_was_given(tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        main(lambda: write_atomic(tmp_path / ("x" * 300), lambda part: part.write_text("new", encoding="utf-8")))
    assert done.value.code == 2 and ".part" not in capsys.readouterr().err and not list(tmp_path.iterdir())
