"""What a file from elsewhere may hold: plain values and dense tensors, and nothing that fills the memory."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError

MAX_COUNT = 2**53  # of steps or samples: beyond, a float64 skips numbers
PLAIN_NAME = re.compile(r"\w([\w .-]{0,98}[\w-])?")  # of a folder, and nothing that leads out of it
MAX_NAME_BYTES = 200  # file systems know 255, and some letters are four bytes
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_count(value: Any) -> bool:
    """Whether this is a whole number, 0 or more."""
    return type(value) is int and 0 <= value < MAX_COUNT


def is_plain_name(text: str) -> bool:
    """Whether this can name a folder of a run, and leads nowhere else."""
    return PLAIN_NAME.fullmatch(text) is not None and len(text.encode()) <= MAX_NAME_BYTES


def require_plain_archive(path: Path) -> None:
    """Check that a file is what torch.save writes: a zip of uncompressed records, so none is larger than the file.

    Raises:
        UserError: it is something else.
    """
    whole = False
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                records = archive.infolist()
            stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
            whole = stored and sum(record.file_size for record in records) <= path.stat().st_size
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RecursionError):
            whole = False
    if not whole:
        raise UserError(f"'{path}' is no checkpoint, or only a part of one; name another file")


def require_tensors(weights: Any, path: Path) -> None:
    """Raises UserError unless these are plain tensors of floating-point numbers, by name, and no larger than their
    file: a few of its bytes can stand for any number of elements."""
    if not isinstance(weights, dict) or not all(
        isinstance(key, str) and is_plain_tensor(weight) for key, weight in weights.items()
    ):
        raise UserError(f"'{path}' is damaged, or somebody has changed it: its weights are no tensors of numbers")
    if sum(weight.nbytes for weight in weights.values()) > path.stat().st_size:
        raise UserError(f"'{path}' is damaged, or somebody has changed it: its weights are larger than the file")


def is_plain_tensor(value: Any) -> bool:
    """Whether this is a dense floating-point tensor on the CPU: not sparse, quantized, complex, on `meta`, or of fewer
    bits than can be computed with."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.dtype in FLOATS
    )


def is_finite(state: Any) -> bool:
    """Whether all numbers in the tensors of a nested state are finite."""
    if isinstance(state, dict):
        return all(map(is_finite, state.values()))
    return not isinstance(state, Tensor) or bool(state.isfinite().all())


def is_plain_config(mapping: Any) -> bool:
    """Whether this is `{section: {key: value}}` with plain values, or lists or dictionaries of plain values."""

    def plain(value: Any) -> bool:
        return value is None or (isinstance(value, bool | int | float | str) and len(str(value)[:5000]) < 5000)

    def setting(value: Any) -> bool:
        if isinstance(value, dict):
            return all(plain(part) for pair in value.items() for part in pair)
        return all(map(plain, value)) if isinstance(value, list | tuple) else plain(value)

    def section(value: Any) -> bool:
        return all(map(plain, value)) and all(map(setting, value.values())) if isinstance(value, dict) else plain(value)

    try:
        return isinstance(mapping, dict) and all(plain(name) and section(keys) for name, keys in mapping.items())
    except ValueError:  # a whole number of thousands of digits has no text
        return False
