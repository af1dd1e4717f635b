"""Paths that no file can have: said in a sentence, with exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from diffvocsep.util.atomic import write_atomic
from diffvocsep.util.cli import main
from diffvocsep.util.errors import UserError


def test_a_folder_in_the_place_of_a_file_is_said_and_stays(tmp_path):
    (tmp_path / "best.pt").mkdir()
    with pytest.raises(UserError, match=r"best\.pt' is a folder, where a file belongs"):
        write_atomic(tmp_path / "best.pt", lambda part: part.write_text("new", encoding="utf-8"))
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


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
