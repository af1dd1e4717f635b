"""The rooms of the program: which may import which (pyproject.toml, [tool.importlinter])."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"


def test_no_import_runs_from_a_lower_room_to_a_higher_one():
    done = subprocess.run([sys.executable, "-c", LINT, "--no-cache"], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and "1 kept, 0 broken" in done.stdout, done.stdout + done.stderr


def test_the_root_stays_small():
    """Beside `__init__.py` and `__main__.py`, whose names are Python's."""
    modules = [path.name for path in (ROOT / "diffvocsep").glob("*.py") if not path.name.startswith("__")]
    assert len(modules) <= 14, modules
