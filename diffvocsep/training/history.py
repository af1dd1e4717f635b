"""`history.csv`: the curves of a run as a table that needs no TensorBoard, and that a spreadsheet may have saved."""

from __future__ import annotations

import codecs
import csv
import io
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..util.atomic import numbered_names, with_filename, write_atomic

MAX_DIGITS = 20  # of a step


class History:
    """`history.csv`: a row now and then, each on disk at once. A run that goes on from `step` drops later rows, and at
    `step` those with values in the columns `redone`: it will write them anew.

    A table that a spreadsheet has saved (with semicolons, decimal commas, in UTF-16) is read all the same and written
    as before; one that is none is kept beside the new one.
    """

    def __init__(self, path: Path, columns: Sequence[str], step: int, redone: Sequence[str] = ()) -> None:
        self.path, self.columns = path, ("step", "time", *columns)
        self.pending: list[dict[str, object]] = []  # rows that are not on disk yet
        rows = [row for row in self._read() if int(row["step"]) <= step]
        self._rewrite([row for row in rows if int(row["step"]) < step or not any(row.get(name) for name in redone)])

    def _rewrite(self, rows: Sequence[Mapping[str, object]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, lambda part: part.write_text(text.getvalue(), encoding="utf-8", newline="\n"))

    def _read(self) -> list[dict[str, str]]:
        """The rows; if some cannot be understood, the file is kept under another name, too. The last may have been cut
        short."""
        if not self.path.exists():
            return []
        rows, understood = read_table(self.path.read_bytes())
        if not understood:
            kept = next(name for name in map(self.path.with_name, numbered_names("history.old")) if not name.exists())
            shutil.copyfile(self.path, kept)
        return rows

    def values_at(self, step: int) -> list[tuple[str, float]]:
        """What is there of a step, by column."""
        rows = [row for row in self._read() if int(row["step"]) == step]
        return [(name, float(row[name])) for row in rows for name in self.columns[2:] if row.get(name)]

    def add(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
        row |= {name: f"{value:.6g}" for name, value in values.items()}
        self.pending.append(row)
        self.write()

    def write(self) -> None:
        """Append what is pending, or leave it for the next time: on Windows, Excel lets no one else write to a file."""
        try:
            with with_filename(self.path):
                if not self._is_ours():
                    self._rewrite(self._read())
                with open(self.path, "a", encoding="utf-8", newline="") as file:
                    csv.DictWriter(file, self.columns, lineterminator="\n").writerows(self.pending)
        except PermissionError:
            return
        self.pending = []

    def _is_ours(self) -> bool:
        """Whether the file begins as this one wrote it, and no spreadsheet has saved it meanwhile."""
        header = (",".join(self.columns) + "\n").encode()
        try:
            with open(self.path, "rb") as file:
                return file.read(len(header)) == header
        except FileNotFoundError:
            return False


def read_table(content: bytes) -> tuple[list[dict[str, str]], bool]:
    """The rows of a table with a column `step`, numbers with a decimal point; and whether all of it was understood."""
    encoding = "utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode(encoding, errors="replace")
    lines = text.splitlines(keepends=True)
    if not lines:
        return [], True
    cut = not lines[-1].endswith(("\n", "\r"))  # by a kill; spreadsheets end every line
    lines = lines[: len(lines) - cut]
    delimiter = next((mark for mark in ",;\t" if f"step{mark}" in (lines or [""])[0].replace('"', "")), ",")
    table, understood = [], True
    for row in _rows(lines, delimiter):
        values = {
            name: value if name == "time" or delimiter == "," else (value or "").replace(",", ".")
            for name, value in row.items()
            if isinstance(name, str)
        }
        if None not in row and _is_step(values.get("step") or "") and all(map(_is_number, _numbers(values))):
            table.append(values)
        elif any(row.values()):
            understood = False
    return table, understood


def _rows(lines: Sequence[str], delimiter: str) -> Iterator[dict[str, str | None]]:
    """The rows up to one that is none: a quote that is never closed swallows all that follows."""
    try:
        yield from csv.DictReader(lines, delimiter=delimiter)
    except csv.Error:
        yield {"step": "not understood"}


def _is_step(text: str) -> bool:
    return text.isdecimal() and len(text) < MAX_DIGITS


def _numbers(row: Mapping[str, str | None]) -> list[str]:
    return [value for name, value in row.items() if value and name != "time"]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
