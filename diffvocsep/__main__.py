"""`python -m diffvocsep song.mp3`"""

from __future__ import annotations

from .command.program import command

if __name__ == "__main__":
    command()
