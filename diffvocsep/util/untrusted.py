"""What a file from elsewhere may hold: plain values and dense tensors, and nothing that fills the memory."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError

MAX_COUNT = 2**53  # of steps or samples: beyond, a float64 skips numbers


def is_count(value: Any) -> bool:
    """Whether this is a whole number, 0 or more."""
    return type(value) is int and 0 <= value < MAX_COUNT


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


def require_tensors(weights: Any, name: str) -> None:
    """Raises UserError unless these are plain tensors of floating-point numbers, by name."""
    if not isinstance(weights, dict) or not all(
        isinstance(key, str) and is_plain_tensor(weight) for key, weight in weights.items()
    ):
        raise UserError(f"{name} is damaged, or somebody has changed it: its weights are no tensors of numbers")


def is_plain_tensor(value: Any) -> bool:
    """Whether this is a dense floating-point tensor on the CPU: not sparse, quantized, complex or on `meta`."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.is_floating_point()
    )


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
