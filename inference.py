"""Take the vocals out of songs: `python inference.py song.mp3`, the program that `pip install .` calls `diffvocsep`."""

from __future__ import annotations

from diffvocsep.command.program import command, run

__all__ = ["run"]

if __name__ == "__main__":
    command()
