"""What programs print, read back."""

from __future__ import annotations

import re


def tables(output: str) -> list[dict[str, list[str]]]:
    """Of each table, the first column -> the others; the header belongs to it."""
    blocks = re.findall(r"(?:^\|.*\|\n?)+", output, re.M)
    lines = [[re.split(r" *\| *", line.strip("| ")) for line in block.splitlines()] for block in blocks]
    return [{row[0]: row[1:] for row in block if not row[0].startswith("---")} for block in lines]
