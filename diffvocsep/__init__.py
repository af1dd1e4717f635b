"""Vocal separation by counterfactual generation: a diffusion model imagines the song without the singer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import Config, load_config
from .util.errors import UserError

if TYPE_CHECKING:
    from .separator import Separator

__all__ = ["Config", "Separator", "UserError", "load_config"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Separator` needs torch, which takes seconds to import; `--help` and a misspelt option should not wait for it."""
    if name == "Separator":
        from .separator import Separator

        return Separator
    raise AttributeError(f"module 'diffvocsep' has no attribute '{name}'")
