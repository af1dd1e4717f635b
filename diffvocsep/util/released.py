"""Where the released weights lie: inside the installed package, or in the checkout that this module is part of."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from .errors import UserError

NAME = "pretrained.safetensors"
CHECKOUT = Path(__file__).resolve().parents[2] / "checkpoints"  # their one place in the repository


def released_weights() -> Path:
    """The file of the released weights.

    Raises:
        UserError: there is none, as in a checkout without its large files.
    """
    if found := find_released():
        return found
    raise UserError(f"the released weights are not in '{CHECKOUT}'; fetch {NAME} again or name a model of your own")


def find_released() -> Path | None:
    packaged = Path(str(files("diffvocsep"))) / "weights"  # setup.py puts them there
    return next((folder / NAME for folder in (packaged, CHECKOUT) if (folder / NAME).is_file()), None)
