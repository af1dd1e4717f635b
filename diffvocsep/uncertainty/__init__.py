"""How far the vocals may be wrong: head.py (the scale of the error, bin by bin), song.py (the numbers of a song)."""

from .head import ScaleHead, record_features
from .song import Uncertainty, load_uncertainty, save_uncertainty

__all__ = ["ScaleHead", "Uncertainty", "load_uncertainty", "record_features", "save_uncertainty"]
